"use strict";
/* The checkpoint to start from, and what the trainer says that it is. */
(function (db) {
    let facts = null, askedFor = "", select = null, none = null;

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

    /** The WebUI's files as they are now; a form that names none begins with one of them. */
    function take(found) {
        db.page.checkpoints = found.checkpoints || [];
        db.page.vaes = found.vaes || [];
        if (!db.form.get("model")) {
            db.form.set("model", found.path || db.model.default());
        }
        db.fields.refresh();
        db.model.refresh();
        db.plan.changed();
    }

    /** A newcomer's first hurdle: where a checkpoint goes, and one to try everything with. */
    function drawNone() {
        const missing = db.model.isMissing(), folder = (db.page.places || {}).checkpoints || "";
        if (none.hidden === !missing) {
            return;
        }
        none.hidden = !missing;
        if (!missing) {
            db.fill(none);
            return;
        }
        const place = db.button(db.t("Put the small one there"), () => placeSmallBase(place), {class: "dbt-small", id: "dbt_small_base"});
        db.fill(none,
            db.h("p", {}, db.t("The WebUI has no checkpoint yet. Put one (a .safetensors file of Stable Diffusion 1, 2 or XL) into this folder, then look again:"),
                " ", db.h("code", {}, folder)),
            db.h("p", {}, db.t("Only want to see how everything goes? A very small one comes with this extension: 24 MB, little pictures of 64 pixels, trained in minutes without a card.")),
            db.h("div", {class: "dbt-buttons"}, db.button("↻ " + db.t("Look again"), db.model.listAgain, {class: "dbt-small"}), place));
    }

    async function placeSmallBase(button) {
        button.disabled = true;
        db.setText(button, db.t("Copying …"));
        try {
            const found = await db.api.post("models/small-base", {}, {timeout: 180000});
            take(found);
            choose(found);
        } catch (error) {
            db.failed(error);
        } finally {
            button.disabled = false;
            db.setText(button, db.t("Put the small one there"));
        }
    }

    /** The only checkpoint there is becomes the WebUI's too, whose own box stands empty. */
    function choose(found) {
        const placed = db.page.checkpoints.find((model) => model.path === found.path);
        if (placed && db.page.checkpoints.length === 1 && window.selectCheckpoint) {
            window.selectCheckpoint(placed.title);
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
            none = db.h("div", {class: "dbt-note dbt-warning", id: "dbt_no_checkpoint", role: "status", hidden: true});
            model.root.insertBefore(facts, model.root.querySelector(".dbt-help"));
            model.root.insertBefore(none, facts);
        },

        /** Whether there is nothing at all to begin with. */
        isMissing: () => !db.page.checkpoints.length && !db.form.get("model"),

        /** Puts the loaded checkpoint into a form that names none. */
        default() {
            const models = db.page.checkpoints;
            const best = models.find((model) => model.loaded) || models.find((model) => model.selected) || models[0];
            return best ? best.path : "";
        },

        /** `asked`: somebody pressed a button, and is told. */
        async listAgain(asked) {
            try {
                take(await db.api.get("models"));
                if (asked) {
                    db.toast(db.count(db.page.checkpoints.length, "{n} checkpoint is there.", "{n} checkpoints are there."));
                }
            } catch (error) {
                db.failed(error);
            }
        },

        /** The WebUI's own box of checkpoints has what its server lists only after its button was pressed. */
        listInWebui() {
            const button = (window.gradioApp ? window.gradioApp() : document).querySelector("#refresh_sd_model_checkpoint");
            if (button) {
                button.click();
            }
        },

        refresh() {
            drawNone();
            inspect();
        },
        forget: () => { askedFor = null; inspect(); },
    };
    // the empty choice of the VAE says what it means, once the localization is there
    db.model.prepare = () => { db.model.makers.vae = chooser(() => db.page.vaes, db.t("The checkpoint's own")); };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
