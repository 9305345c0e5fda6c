"use strict";
/* The checkpoint to start from, and what the trainer says that it is. */
(function (db) {
    let facts = null, askedFor = "", select = null;

    /** A select of the WebUI's files; a path that is not among them stays a choice. */
    function chooser(models, emptyText) {
        return function (props) {
            const control = db.h("select", props);
            function show(path) {
                const known = models().map((model) => db.h("option", {value: model.path}, model.title || model.name));
                if (!path || emptyText) {
                    known.unshift(db.h("option", {value: ""}, emptyText || db.t("Choose a checkpoint")));
                }
                if (path && !models().some((model) => model.path === path)) {
                    known.push(db.h("option", {value: path}, path));
                }
                db.fill(control, known);
                control.value = path || "";
            }
            return {control, show, read: () => ({value: control.value})};
        };
    }

    /** The facts of a file as one line. `size` is in bytes. */
    function factsText(found) {
        const prediction = {epsilon: db.t("predicts noise (epsilon)"), v_prediction: db.t("predicts velocity (v)")}[found.prediction_type];
        const size = typeof found.size === "number" ? db.size(found.size) : found.size;
        return [found.family || found.problem, prediction || found.prediction_type, found.precision, size].filter(Boolean).join(" · ");
    }

    async function inspect() {
        const path = db.form.get("model");
        if (path === askedFor) {
            return;
        }
        askedFor = path;
        db.setText(facts, "");
        facts.className = "dbt-facts";
        if (!path || !db.page.checkpoints.some((model) => model.path === path)) {
            return;
        }
        db.setText(facts, db.t("Looking at the file …"));
        try {
            const found = await db.api.get("models/inspect?path=" + encodeURIComponent(path), {timeout: 120000});
            if (askedFor === path) {
                db.setText(facts, factsText(found));
                db.model.family = found.family_name || "";
                db.presets.refresh();
            }
        } catch (error) {
            if (askedFor === path) {
                askedFor = error.status === 400 ? path : "";  // a file that cannot be read stays so
                db.setText(facts, error.status > 0 ? db.said(error.text) : "");
            }
        }
    }

    db.model = {
        family: "",  // sd1, sd2-inpaint, sdxl, …: "" until the trainer has told

        /** The fields that have choices of the WebUI's, by setting. */
        makers: {
            model: chooser(() => db.page.checkpoints, ""),
            vae: chooser(() => db.page.vaes, " "),
        },

        section(fields) {
            facts = db.h("div", {class: "dbt-facts", id: "dbt_model_facts", "aria-live": "polite"});
            const refresh = db.button("↻", db.model.listAgain, {class: "dbt-square", title: db.t("Look for checkpoints again"),
                "aria-label": db.t("Look for checkpoints again")});
            const model = fields.get("model");
            select = model.control;
            select.after(refresh);
            model.root.insertBefore(facts, model.root.querySelector(".dbt-help"));
        },

        /** Puts the loaded checkpoint into a form that names none. */
        default() {
            const models = db.page.checkpoints;
            const best = models.find((model) => model.loaded) || models.find((model) => model.selected) || models[0];
            return best ? best.path : "";
        },

        async listAgain() {
            try {
                const found = await db.api.get("models");
                db.page.checkpoints = found.checkpoints || [];
                db.page.vaes = found.vaes || [];
                if (!db.form.get("model")) {
                    db.form.set("model", db.model.default());
                }
                db.fields.refresh();
            } catch (error) {
                db.failed(error);
            }
        },

        refresh: inspect,
        forget: () => { askedFor = null; inspect(); },
    };
    // the empty choice of the VAE says what it means, once the localization is there
    db.model.prepare = () => { db.model.makers.vae = chooser(() => db.page.vaes, db.t("The checkpoint's own")); };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
