"use strict";
/* All runs: look, resume, use the settings again, delete. */
(function (db) {
    const STATES = {running: "Running", finished: "Finished", stopped: "Stopped", failed: "Failed", interrupted: "Interrupted", starting: "Starting"};
    const TITLES = {checkpoint: "Checkpoint", diffusers: "Diffusers folder", lora: "LoRA", dora: "DoRA", loha: "LoHa", lokr: "LoKr"};
    let list = null, timer = 0, key = "";

    /** What there is to go on from, and what an end has cost. */
    function keptText(run, alive) {
        const saved = run.saved || 0, lost = (run.step || 0) - saved;
        if (run.state === "finished" || !run.step) {
            return "";
        }
        if (!saved) {
            return alive ? db.t("nothing saved yet") : db.count(lost, "{n} step is lost: nothing was saved", "all {n} steps are lost: nothing was saved");
        }
        const kept = db.t("saved up to step {n}", {n: saved.toLocaleString()});
        return alive || lost <= 0 ? kept : kept + ", " + db.count(lost, "{n} step is lost", "{n} steps are lost");
    }

    function row(run) {
        const alive = run.state === "running" || run.state === "starting";
        const steps = run.steps ? db.t("{step} of {steps} steps", {step: (run.step || 0).toLocaleString(), steps: run.steps.toLocaleString()}) : "";
        const remove = db.button(db.t("Delete"), () => db.confirm(remove, db.t("Delete this run? Its finished checkpoints are kept."), db.t("Delete"), () => removeRun(run.name)),
            {class: "dbt-small dbt-quiet"});
        return db.h("li", {class: "dbt-run", "data-run": run.name},
            db.h("div", {class: "dbt-run-main"},
                db.button(run.name, () => db.show("live", run.name), {class: "dbt-link dbt-run-name"}),
                db.h("span", {class: "dbt-badge dbt-state-" + run.state}, db.t(STATES[run.state] || run.state)),
                db.h("span", {class: "dbt-help"}, [TITLES[run.kind] ? db.t(TITLES[run.kind]) : "", steps, keptText(run, alive), db.ago(run.changed)].filter(Boolean).join(" · "))),
            run.error && run.state !== "finished" ? db.h("div", {class: "dbt-run-error"}, db.sentences(run.error.text || run.error)) : null,
            db.h("div", {class: "dbt-buttons"},
                db.button(alive ? db.t("Watch") : db.t("Look"), () => db.show("live", run.name), {class: "dbt-small"}),
                ["stopped", "failed", "interrupted"].includes(run.state) ? db.button(db.runs.resuming === run.name ? db.t("Starting …") : db.t("Resume"),
                    () => db.runs.resume(run.name), {class: "dbt-small", disabled: db.runs.resuming === run.name}) : null,
                db.button(db.t("Use these settings again"), () => db.runs.reuse(run.name), {class: "dbt-small"}),
                alive ? null : remove));
    }

    async function removeRun(name) {
        try {
            await db.api.remove(db.api.run(name));
            db.toast(db.t("{name} was deleted.", {name}));
            if (db.live.name === name) {
                db.live.show("");
            }
        } catch (error) {
            db.failed(error);
        }
        load();
    }

    async function load() {
        clearTimeout(timer);
        if (db.isVisible()) {
            try {
                take(await db.api.get("runs", {timeout: 15000}));
            } catch (error) {
                if (error.status > 0) {
                    db.failed(error);
                }
            }
        }
        timer = setTimeout(load, db.run.starting ? 1000 : db.view === "runs" ? 5000 : 15000);
    }

    function take(found) {
        const runs = found.runs || [];
        db.following.hear({active: found.active || "", starting: Boolean(found.starting)});
        db.live.waiting(found.starting || null, found.failed_start);
        const now = JSON.stringify([runs, db.runs.resuming, Math.floor(Date.now() / 60000)]);
        if (now === key || list.querySelector(".dbt-confirm")) {
            return;
        }
        key = now;
        db.fill(list, runs.length ? runs.map(row) : db.h("li", {class: "dbt-empty"}, db.t("There are no runs yet.")));
    }

    db.runs = {
        section() {
            list = db.h("ul", {class: "dbt-runs"});
            return db.h("section", {class: "dbt-card"}, db.h("h2", {}, db.t("Runs")), list,
                db.page.places && db.page.places.runs ? db.h("p", {class: "dbt-help"}, db.t("They lie in {path}", {path: db.page.places.runs})) : null);
        },

        soon: () => { clearTimeout(timer); timer = setTimeout(load, 200); },

        resuming: "",  // a trainer is on its way that goes on with it

        async resume(name) {
            db.runs.resuming = name;
            db.live.again();
            db.runs.soon();
            try {
                await db.api.post(db.api.run(name, "resume"), {}, {timeout: 300000});
                db.following.hear({active: name});
                db.live.show("");
                db.show("live", name);
            } catch (error) {
                db.failed(error);
            } finally {
                db.runs.resuming = "";
                db.live.again();
                db.runs.soon();
            }
        },

        async reuse(name) {
            try {
                const found = await db.api.get(db.api.run(name, "form"));
                const form = found.form || found;
                delete form.output_name;  // the next result has a name of its own
                db.opened(form, found.not_taken || []);
            } catch (error) {
                db.failed(error);
            }
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
