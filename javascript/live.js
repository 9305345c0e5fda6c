"use strict";
/* One run as it goes: polled while the tab can be seen, slowly when nothing happens. All of it comes from the run's
   own folder, so a reloaded page, a second one and a restarted WebUI show the same. */
(function (db) {
    const COMMANDS = [
        {do: "stop", title: "Stop", help: "Stops after saving, so that it can go on later."},
        {do: "stop_now", title: "Stop now", help: "Stops at once. What came after the last save is lost.", ask: stopNowText, no: "Go on"},
        {do: "save", title: "Save", help: "Saves the state to go on from.", inTraining: true},
        {do: "export", title: "Export now", help: "Writes a checkpoint that can be used at once, and goes on.", inTraining: true},
        {do: "sample", title: "Sample now", help: "Makes the sample pictures, and goes on.", inTraining: true},
    ];
    const savedStep = (state) => (state.saved || {}).step || 0;
    const lostSteps = (state) => Math.max(0, (state.step || 0) - savedStep(state));

    /** What an end without a save would cost just now. */
    function stopNowText(state) {
        const lost = lostSteps(state), saved = savedStep(state).toLocaleString();
        if (!lost) {
            return savedStep(state) ? db.t("Stop at once? All steps so far are saved.") : db.t("Stop at once? No step has been made yet.");
        }
        return savedStep(state)
            ? db.count(lost, "Stop without saving? {n} step since step {step} would be lost.", "Stop without saving? {n} steps since step {step} would be lost.", {step: saved})
            : db.count(lost, "Stop without saving? Nothing was saved yet: {n} step would be lost.", "Stop without saving? Nothing was saved yet: all {n} steps would be lost.");
    }

    const PHASES = {
        caching: "Reading the photos", "class images": "Making class images", training: "Training", samples: "Making sample pictures",
        export: "Writing the checkpoint", stopped: "Stopped", images: "Reading the photos", captions: "Reading the captions",
        starting: "Starting", loading: "Loading the checkpoint", checkpoint: "Saving", planning: "Planning",
    };
    const STATES = {running: "Running", finished: "Finished", stopped: "Stopped", failed: "Failed", interrupted: "Interrupted", starting: "Starting"};
    const KEPT = ["chart", "samples", "exports", "warnings"];  // what an answer may leave out when nothing is new

    let view = null, shown = "", offset = 0, last = {}, empty = null, root = null, timer = 0, polling = false, again = false, waitingKey = "", elsewhere = null;

    const tile = (name, id) => {
        const value = db.h("span", {class: "dbt-tile-value", id}, "–"), title = db.h("span", {class: "dbt-tile-name"}, name);
        return {root: db.h("div", {class: "dbt-tile"}, title, value), show(text, other) {
            db.setText(title, other || name);
            db.setText(value, text);
            this.root.hidden = text === "";
        }};
    };

    function build(name) {
        const tiles = {
            step: tile(db.t("Step"), "dbt_step"), eta: tile(db.t("Time left"), "dbt_eta"), rate: tile(db.t("Steps a second"), "dbt_rate"),
            loss: tile(db.t("Loss"), "dbt_loss"), memory: tile(db.t("Memory"), "dbt_memory"), lr: tile(db.t("Learning rate"), "dbt_lr"),
        };
        const made = {
            name, tiles, chart: db.chart(), samples: db.samples.view(), result: db.result.view(name),
            badge: db.h("span", {class: "dbt-badge", id: "dbt_state"}), phase: db.h("span", {class: "dbt-phase", id: "dbt_phase", "aria-live": "polite"}),
            bar: db.h("div", {class: "dbt-bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": db.t("Progress")}, db.h("i", {})),
            problem: db.h("div", {class: "dbt-run-problem", role: "alert"}), card: db.h("div", {class: "dbt-help", id: "dbt_card"}), warnings: db.h("ul", {class: "dbt-advice"}),
            log: db.h("pre", {class: "dbt-log", tabindex: 0, "aria-label": db.t("The last lines of the log")}), commands: [], drawn: {}, asking: () => {},
        };
        made.buttons = db.h("div", {class: "dbt-buttons"}, COMMANDS.map((command) => {
            const button = db.button(db.t(command.title), () => {
                if (command.ask) {
                    const say = db.confirm(button, command.ask(last), db.t(command.title), () => order(name, command), db.t(command.no));
                    made.asking = () => say(command.ask(last));  // the steps go on meanwhile
                } else {
                    order(name, command);
                }
            },
            {id: "dbt_do_" + command.do, title: db.t(command.help)});
            made.commands.push(button);
            return button;
        }));
        made.after = db.h("div", {class: "dbt-buttons"});
        made.samplesCard = card(db.t("Samples"), made.samples.root);
        made.chartCard = card(db.t("Loss"), made.chart.root);
        made.root = db.h("div", {class: "dbt-live"},
            db.h("section", {class: "dbt-card"},
                db.h("div", {class: "dbt-card-head"}, db.h("h2", {}, name), made.badge, db.h("span", {class: "dbt-space"}), made.phase),
                made.bar, db.h("div", {class: "dbt-tiles"}, Object.values(tiles).map((one) => one.root)), made.card, made.problem, made.buttons, made.after, made.warnings),
            made.result.root, made.chartCard, made.samplesCard, card(db.t("Log"), made.log));
        return made;
    }

    const card = (title, ...children) => db.h("section", {class: "dbt-card"}, db.h("h2", {}, title), ...children);

    const nothing = () => db.h("p", {class: "dbt-empty"}, db.t("Nothing is being trained. A training that you start is shown here."));

    async function cancelStart() {
        try {
            await db.api.post("runs/cancel-start");
            db.runs.soon();
        } catch (error) {
            db.failed(error);
        }
    }

    /** A trainer that has no run yet: it starts, or it failed before it had one. */
    function drawWaiting(starting, failed) {
        if (!starting && !failed) {
            db.fill(empty, nothing());
            return;
        }
        const log = (starting || failed).log || [];
        db.fill(empty, card(starting ? db.t("Starting") : db.t("The training could not be started"),
            failed && !starting ? db.problem(failed) : db.h("p", {}, db.t("The trainer is starting. Its first words come in a moment.")),
            log.length ? db.h("pre", {class: "dbt-log", tabindex: 0}, log.join("\n")) : null,
            starting ? db.button(db.t("Cancel"), cancelStart, {id: "dbt_cancel_start"}) : null));
    }

    async function order(name, command) {
        try {
            await db.api.post(db.api.run(name, "commands"), {do: command.do});
            db.toast(db.t("{name}: asked. The trainer answers between two steps.", {name: db.t(command.title)}));
            db.live.now();
        } catch (error) {
            db.failed(error);
        }
    }

    /** A trainer is on its way that has not said anything yet, or not what it does: what is known is of an earlier one, or nothing. */
    const isStarting = (state) => state.state === "running" && (state.starting || (!state.ending && !(state.phase || {}).name));

    /** A trainer that was told to stop, or is done: what it does until it is gone. */
    const ENDINGS = {stop: "Stopping", stop_now: "Stopping", done: "Ending"};
    const badgeText = (state) => db.t((state.state === "running" && ENDINGS[state.ending]) || STATES[state.state] || state.state || "");

    /** Whether steps are being made, and more are to come: only then is there something to save, or to look at. */
    const isTraining = (state) => ["training", "samples"].includes((state.phase || {}).name) && !(state.of && state.step >= state.of);

    /** Whether an order makes sense: none before the trainer hears any, a stop at all times, after a stop only a quicker one. */
    const canOrder = (state, order) => !isStarting(state) && (isTraining(state) || !order.inTraining)
        && (!state.ending || (state.ending === "stop" && order.do === "stop_now"));

    function phaseText(state) {
        const phase = state.phase || {};
        if (state.state !== "running") {
            return "";
        }
        if (isStarting(state)) {
            return db.t("Starting");
        }
        if (state.ending && (state.ending !== "stop" || phase.name === "training")) {
            return state.ending === "stop" ? db.t("Saving") : "";
        }
        const title = db.t(PHASES[phase.name] || phase.name);
        return phase.of > 1 && phase.name !== "training" && typeof phase.done === "number"
            ? db.t("{phase}: {done} of {of}", {phase: title, done: phase.done.toLocaleString(), of: phase.of.toLocaleString()}) : title;
    }

    function progress(state) {
        const phase = state.phase || {};
        if (state.state === "finished") {
            return 1;
        }
        if (state.state === "running" && !isStarting(state) && phase.of && !["training", "samples", "export"].includes(phase.name) && typeof phase.done === "number") {
            return phase.done / phase.of;
        }
        return state.of ? (state.step || 0) / state.of : 0;
    }

    /** What the WebUI's model gave back to the card before the training. */
    function cardText(card) {
        if (!card || typeof card.before_gb !== "number" || typeof card.after_gb !== "number") {
            return "";
        }
        return db.t("The WebUI's model left the card: {before} GB were free before, {after} GB after.",
            {before: card.before_gb.toFixed(1), after: card.after_gb.toFixed(1)});
    }

    const number = (value, digits) => (typeof value === "number" && isFinite(value) ? value.toFixed(digits) : "–");

    function rate(value) {
        if (typeof value !== "number" || !(value > 0)) {
            return "–";
        }
        return value >= 1 ? value.toFixed(2) : value.toPrecision(2);
    }

    function draw(state) {
        const running = state.state === "running" || state.state === "starting";
        const smooth = ((state.chart || {}).smooth || []).filter((value) => typeof value === "number");
        view.badge.className = "dbt-badge dbt-state-" + state.state;
        db.setText(view.badge, badgeText(state));
        db.setText(view.phase, phaseText(state));
        const share = Math.max(0, Math.min(1, progress(state)));
        view.bar.firstChild.style.width = (share * 100).toFixed(1) + "%";
        view.bar.setAttribute("aria-valuenow", Math.round(share * 100));
        view.bar.className = "dbt-bar dbt-state-" + state.state;
        view.tiles.step.show(state.of ? (state.step || 0).toLocaleString() + " / " + state.of.toLocaleString() : "–");
        drawTimeLeft(state, running);
        view.tiles.rate.show(!running ? "" : isStarting(state) ? "–" : rate(state.it_s));
        view.tiles.loss.show(smooth.length ? smooth[smooth.length - 1].toPrecision(3) : "–");
        view.tiles.memory.show(typeof state.memory_gb === "number" && state.memory_gb > 0 ? number(state.memory_gb, 1) + " GB" : "–");
        view.tiles.lr.show(typeof state.lr === "number" ? db.plainNumber(Number(state.lr.toPrecision(3))) : "–");
        view.buttons.hidden = !running;
        view.asking();
        view.commands.forEach((button, index) => {
            button.disabled = !canOrder(state, COMMANDS[index]);
            button.title = db.t(COMMANDS[index].help) + (COMMANDS[index].inTraining && running && !isTraining(state) ? " " + db.t("Can be asked for while steps are made.") : "");
        });
        view.chartCard.hidden = !((state.chart || {}).steps || []).length;
        view.chart.show(state.chart, state.of);
        view.samplesCard.hidden = !(state.samples || []).length;
        view.samples.show(state.samples || []);
        drawOnce("problem", [state.error, state.state, state.step, savedStep(state), db.runs.resuming], () => drawProblem(state));
        drawOnce("warnings", state.warnings, () => db.fill(view.warnings, (state.warnings || []).map((text) =>
            db.h("li", {class: "dbt-note dbt-warning"}, db.sentences(text.text || text)))));
        db.setText(view.card, running ? cardText(state.card) : "");
        drawOnce("log", state.log, () => drawLog(state.log || []));
        view.result.show(state);
        const wasActive = db.run.active === shown;
        if (wasActive && !running) {
            db.following.hear({active: ""});
            db.following.now();
        }
    }

    /** Of the whole training once its steps have a pace, before that of the phase that it is in. */
    function drawTimeLeft(state, running) {
        const ofPhase = running && !isStarting(state) && typeof state.phase_eta_s === "number";
        const seconds = ofPhase ? state.phase_eta_s : state.eta_s;
        view.tiles.eta.show(!running || state.ending ? "" : typeof seconds !== "number" || isStarting(state) ? "–" : db.duration(seconds),
            ofPhase ? db.t("Time left for this phase") : "");
    }

    function drawOnce(name, content, act) {
        const key = JSON.stringify(content === undefined ? null : content);
        if (view.drawn[name] !== key) {
            view.drawn[name] = key;
            act();
        }
    }

    /** What was lost with the end of a run, and where it goes on. */
    function resumeText(state) {
        const saved = savedStep(state), lost = lostSteps(state);
        const cost = !lost ? "" : saved
            ? db.count(lost, "{n} step since step {step} is lost.", "{n} steps since step {step} are lost.", {step: saved.toLocaleString()})
            : db.count(lost, "{n} step is lost.", "All {n} steps are lost.");
        const way = saved ? db.t("Resume goes on from step {n}, the last that was saved.", {n: saved.toLocaleString()})
            : db.t("Nothing was saved yet: Resume begins with the first step.");
        return db.joined(cost, way);
    }

    function drawProblem(state) {
        const canResume = ["stopped", "failed", "interrupted"].includes(state.state);
        const texts = {
            stopped: db.t("Stopped by you."),
            interrupted: db.t("The trainer ended without a word: it was killed, or the machine went down."),
            failed: db.t("The trainer failed."),
        };
        const error = state.error && state.error.text ? state.error : canResume ? {text: texts[state.state]} : null;
        db.fill(view.problem, error && state.state !== "finished" ? db.problem(error, state.state === "stopped" ? "note" : "error") : null);
        const resuming = db.runs.resuming === shown;
        db.fill(view.after, canResume ? [
            db.button(resuming ? db.t("Starting …") : db.t("Resume"), () => db.runs.resume(shown), {class: "dbt-primary", id: "dbt_resume", disabled: resuming}),
            db.button(db.t("Use these settings again"), () => db.runs.reuse(shown)),
            db.h("span", {class: "dbt-help", id: "dbt_kept"}, resumeText(state))] : state.state === "finished"
            ? [db.button(db.t("Use these settings again"), () => db.runs.reuse(shown))] : null);
    }

    function drawLog(lines) {
        const log = view.log, atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
        db.setText(log, (Array.isArray(lines) ? lines.join("\n") : lines) || "");
        if (atEnd) {
            log.scrollTop = log.scrollHeight;
        }
    }

    async function poll() {
        if (!shown || polling) {
            again = polling;
            return;
        }
        polling = true;
        again = false;
        const name = shown;
        try {
            const state = await db.api.get(db.api.run(name, "live?since=" + offset), {timeout: 15000});
            if (name === shown) {
                take(state);
            }
        } catch (error) {
            if (name === shown && error.status === 404) {
                db.live.show("");
                db.runs.soon();
            } else if (error.status > 0) {
                db.failed(error);
            }
        }
        polling = false;
        if (again) {  // asked for meanwhile: what came may be from before
            db.live.now();
        } else {
            db.live.later();
        }
    }

    function take(state) {
        for (const key of KEPT) {
            if (state[key] === undefined || state[key] === null) {
                state[key] = last[key];
            }
        }
        offset = state.offset || 0;
        last = state;
        draw(state);
    }

    db.live = {
        section() {
            empty = db.h("div", {class: "dbt-live"}, nothing());
            root = db.h("div", {}, empty);
            elsewhere = db.h("div", {class: "dbt-note", role: "status", id: "dbt_elsewhere", hidden: true});
            return [elsewhere, root];
        },

        /** Shows a run; "" for none. */
        show(name) {
            if (name === shown && view) {
                return;
            }
            shown = name;
            offset = 0;
            last = {};
            view = name ? build(name) : null;
            db.fill(root, view ? view.root : empty);
            db.live.aside();
            db.live.now();
        },

        /** Says that another run than the shown one is the one that runs. */
        aside() {
            const name = shown && db.run.active !== shown ? db.run.active : "";
            elsewhere.hidden = !name;
            if (elsewhere.dataset.run !== name) {
                elsewhere.dataset.run = name;
                db.fill(elsewhere, db.t("{name} is running.", {name}), " ", db.button(db.t("Show"), () => db.show("live", name), {class: "dbt-link"}));
            }
        },

        /** Draws the shown run again, without asking. */
        again() {
            if (view && last.state) {
                draw(last);
            }
        },

        get name() { return shown; },

        waiting(starting, failed) {
            const now = JSON.stringify([starting, failed]);
            if (now !== waitingKey) {
                waitingKey = now;
                drawWaiting(starting, failed);
            }
        },

        later() {
            clearTimeout(timer);
            if (!shown || !db.isVisible() || db.view !== "live") {
                return;
            }
            timer = setTimeout(poll, last.behind ? 30 : last.state === "running" || last.state === "starting" || last.state === undefined ? 1000 : 8000);
        },

        now() {
            clearTimeout(timer);
            if (shown && db.isVisible() && db.view === "live") {
                poll();
            }
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
