"use strict";
/* The trainer's environment: missing, being made, failed; with the installer's output and a button that tries again. */
(function (db) {
    const TITLES = {
        making: "The trainer's environment is being made. This happens once and takes some minutes.",
        missing: "The trainer's environment is missing, so nothing can be trained yet.",
        failed: "The trainer's environment could not be made.",
        broken: "The trainer's environment does not work.",
        other: "The trainer's environment is not ready.",
    };
    let root = null, title = null, text = null, log = null, button = null, timer = 0;

    function draw(found) {
        const before = db.installation.state;
        db.installation.state = found.state;
        root.hidden = found.state === "ready";
        root.className = "dbt-card dbt-installation dbt-installation-" + found.state;
        db.setText(title, db.t(TITLES[found.state] || TITLES.other));
        db.setText(text, db.sentences(found.text, found.remedy));
        const lines = (found.log || []).join("\n");
        log.hidden = !lines;
        const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
        db.setText(log, lines);
        if (atEnd) {
            log.scrollTop = log.scrollHeight;
        }
        button.hidden = found.state === "making" || found.state === "ready";
        db.setText(button, found.state === "missing" ? db.t("Make it now") : db.t("Try again"));
        if (before !== found.state) {
            db.plan.refreshButton();
            if (found.state === "ready") {
                db.plan.soon(0);
                db.model.forget();
            }
        }
    }

    async function poll() {
        clearTimeout(timer);
        if (db.installation.state === "ready") {
            return;
        }
        if (db.isVisible()) {
            try {
                draw(await db.api.get("installation", {timeout: 15000}));
            } catch (error) {
                if (error.status > 0) {
                    db.failed(error);
                }
            }
        }
        timer = setTimeout(poll, db.installation.state === "making" ? 1500 : 6000);
    }

    async function make() {
        button.disabled = true;
        try {
            draw(await db.api.post("installation/make"));
        } catch (error) {
            db.failed(error);
        }
        button.disabled = false;
        poll();
    }

    db.installation = {
        state: "",

        section() {
            title = db.h("h2", {});
            text = db.h("p", {});
            log = db.h("pre", {class: "dbt-log", tabindex: 0, "aria-label": db.t("The installer's output")});
            button = db.button(db.t("Try again"), make, {class: "dbt-primary", id: "dbt_make"});
            root = db.h("section", {class: "dbt-card dbt-installation", role: "status", hidden: true}, title, text, log, button);
            return root;
        },

        begin(found) {
            draw(found || {state: "missing"});
            poll();
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
