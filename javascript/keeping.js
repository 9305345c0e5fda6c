"use strict";
/* The form between visits: the server keeps it, and how it came to be, so that a reloaded page has it. */
(function (db) {
    const WAIT = 400;
    const MOST = 60000;  // bytes that a browser goes on sending for a page that is gone
    let timer = 0, kept = "";

    /** The form, and by what it was filled in: that goes on moving with the model and the kind of result. */
    const snapshot = () => ({form: db.form.copy(), preset: db.presets.chosen(), typed: [...db.form.typed], family: db.model.family});

    async function remember() {
        clearTimeout(timer);
        const found = snapshot(), text = JSON.stringify(found);
        if (text === kept) {
            return;
        }
        kept = text;
        try {
            await db.api.post("form", found, {outlives: new Blob([text]).size < MOST});
        } catch (error) {
            kept = "";  // said by the plan, which asks the same server
        }
    }

    db.keeping = {
        snapshot,

        /** Draws a form as it was kept. */
        restore(found) {
            db.model.family = found.family || "";  // until the trainer has looked at the file again
            db.presets.fresh(found.preset);
            db.form.load(found.form, found.typed);
        },

        /** From now on every change is kept. */
        begin() {
            kept = JSON.stringify(snapshot());
            window.addEventListener("pagehide", remember);  // what was just written is kept although the page goes
            document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && remember());
            db.form.onChange(() => {
                clearTimeout(timer);
                timer = setTimeout(remember, WAIT);
            });
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
