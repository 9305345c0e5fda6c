"use strict";
/* What has the card, whoever started it and on whatever page: asked every few seconds while the tab can be seen, in
   every view. What comes of a run elsewhere (it starts, ends, dies, is deleted) is drawn, planned and listed anew here. */
(function (db) {
    const EVERY = 3000;
    let timer = 0, known = {}, polling = false, again = false, turn = 0;

    async function poll() {
        clearTimeout(timer);
        if (polling) {
            again = true;
            return;
        }
        if (db.isVisible()) {
            polling = true;
            const before = turn;
            try {
                const found = await db.api.get("active", {timeout: 15000});
                if (before === turn) {  // else it was said before what this page has heard since
                    take(found);
                }
            } catch (error) {
                // a WebUI that is away is said by the banner; whatever else is wrong, the next poll asks again
            }
            polling = false;
        }
        timer = setTimeout(poll, again ? 0 : EVERY);
        again = false;
    }

    /** `now`: what is known of `active` (a run's name), `starting`, `runs` and `listed` (stamps). Other parts stay as they were. */
    function take(now) {
        const before = known;
        known = {...before, ...now};
        const news = Object.keys(now).filter((name) => name in before && now[name] !== before[name]);
        db.run.active = known.active || "";
        db.run.starting = Boolean(known.starting);
        showAwaited(before.active || "");
        if (news.includes("listed")) {
            db.model.listAgain();
            db.model.listInWebui();
        }
        if (news.includes("active") || news.includes("runs")) {
            db.plan.again();
        }
        if (["active", "starting", "runs"].some((name) => news.includes(name))) {
            db.runs.soon();
        }
        db.markActive();
        db.plan.refreshButton();
    }

    /** The first run that there is to see, and the one that this page has started. */
    function showAwaited(before) {
        if (db.run.active && (!db.live.name || (db.run.awaited && db.run.active !== before))) {
            db.run.awaited = false;
            db.live.show(db.run.active);
        }
    }

    db.following = {
        /** From the page's own beginning, before anything is asked: `active` and `listed`, as its lists were made. */
        begin(active, listed) {
            known = {active, listed};
            db.run.active = active;
            db.run.starting = false;
            clearTimeout(timer);
            timer = setTimeout(poll, 0);
        },

        /** This page has heard of it otherwise: it started or ended it, or saw it end. */
        hear(now) {
            turn += 1;
            take(now);
        },

        now: poll,
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
