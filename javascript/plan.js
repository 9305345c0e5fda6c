"use strict";
/* The plan: asked from the trainer in the background as the form changes; Train is off while something is wrong. */
(function (db) {
    const WAIT = 700;
    const PAGE = Math.random().toString(36).slice(2) + Date.now().toString(36);  // another page's plan is not ours
    let box = null, facts = null, notes = null, reason = null, train = null, status = null;
    let timer = 0, stale = false, isOfAnother = false, asked = null, errors = [], askedFor = "", starting = false, advised = {of: "", folders: [], concepts: []};

    function fact(name, value, more) {
        return value === "" || value === null || value === undefined ? null
            : [db.h("dt", {}, name), db.h("dd", {}, value, more ? db.h("span", {class: "dbt-help"}, more) : null)];
    }

    function classImages(found) {
        const all = (found.class_images || 0) + (found.class_images_to_make || 0);
        if (!all) {
            return db.t("none");
        }
        return found.class_images_to_make
            ? db.t("{all}, of which {n} are made first", {all: all.toLocaleString(), n: found.class_images_to_make.toLocaleString()})
            : db.t("{all}, all of them there", {all: all.toLocaleString()});
    }

    const GB = 2 ** 30;  // as nvidia-smi counts
    const gigabytes = (bytes, digits) => (bytes / GB).toFixed(digits === undefined ? 1 : digits);

    /** The fullest phase beside what there is; and, folded, every phase's sum, line by line. */
    function memoryFact(memory) {
        if (!memory.phases) {
            return null;
        }
        const fullest = memory.phases.find((phase) => phase.bytes === memory.peak);
        const text = db.t("{gb} of {room} GB, in {phase}",
            {gb: gigabytes(memory.peak), room: gigabytes(memory.allowed), phase: db.said(fullest.name)});
        const rows = memory.phases.map((phase) => [
            db.h("tr", {class: "dbt-memory-sum"}, db.h("td", {}, db.said(phase.name)), db.h("td", {}, gigabytes(phase.bytes, 2), " GB")),
            phase.lines.filter((line) => line.bytes >= GB / 200).map((line) => db.h("tr", {},
                db.h("td", {}, db.said(line.text)), db.h("td", {}, gigabytes(line.bytes, 2), " GB")))]);
        const ways = (memory.ways || []).map((way) => db.h("tr", {},
            db.h("td", {}, db.h("code", {}, way.name + ": " + way.value), way.does ? db.h("span", {class: "dbt-help"}, db.said(way.does)) : null),
            db.h("td", {}, way.asked ? db.t("as asked") : db.t("chosen"))));
        const before = facts.querySelector(".dbt-memory details");
        return [db.h("dt", {}, db.t("Memory")), db.h("dd", {class: "dbt-memory"}, text,
            memory.fits ? null : db.h("span", {class: "dbt-error-text"}, " ", db.t("may not fit")),
            memory.fits && memory.peak > memory.usable ? db.h("span", {class: "dbt-help"}, db.t("fits but for sample pictures")) : null,
            db.accordion(db.t("What each phase takes"), {open: Boolean(before && before.open)}, db.h("table", {}, rows, ways)))];
    }

    function draw() {
        const found = db.plan.found, name = db.fields.find("output_name");
        if (name) {  // what it will be called where nothing is written
            name.control.placeholder = found && found.output ? db.baseName(found.output).replace(/\.\w+$/, "") : "";
        }
        isOfAnother = db.form.mistakes().length > 0;
        box.classList.toggle("dbt-stale", Boolean(asked) || isOfAnother);
        if (!found) {
            db.fill(facts);
            db.fill(notes);
            return;
        }
        const epochs = typeof found.epochs === "number" ? db.t("each photo {n} times", {n: Math.round(found.epochs).toLocaleString()}) : "";
        const expected = typeof found.expected_seconds === "number"
            ? db.t("about {time}", {time: db.duration(found.expected_seconds)}) : db.t("not known before it has begun");
        db.fill(facts,
            fact(db.t("Photos"), String(found.images)),
            fact(db.t("Class images"), classImages(found)),
            fact(db.t("Steps"), (found.steps || 0).toLocaleString(), epochs),
            fact(db.t("Trained"), db.list((found.trained || []).map(db.said))),
            fact(db.t("Time"), expected, found.expected_by ? db.said(found.expected_by) : ""),
            fact(db.t("Device"), found.device, found.mixed_precision === "no" ? db.t("full precision (float32)") : found.mixed_precision),
            memoryFact(found.memory || {}),
            fact(db.t("Disk"), db.t("{needed} needed, {free} free", {needed: db.size(found.disk_needed), free: db.size(found.disk_free)})));
        const files = (found.files || []).filter((file) => file.path);
        db.fill(notes,
            (isOfAnother ? [] : found.notes || []).map((note) => db.h("li", {class: "dbt-note dbt-" + noteLevel(note)}, db.sentences(note))),
            files.length ? db.h("li", {class: "dbt-plain"}, db.accordion(db.t("Files that will be written"), {},
                db.h("ul", {class: "dbt-file-list"}, files.map((file) => db.h("li", {}, db.h("code", {}, file.path),
                    db.h("span", {class: "dbt-help"}, db.list([db.said(file.what), file.size ? db.size(file.size) : ""].filter(Boolean)))))))) : null);
    }

    const noteLevel = (note) => (/^(image left out|concept \d+:)|learning_rate \S+ is \d+ times /.test(note) ? "warning" : "note");

    /** Why Train is off: {text, where} or null. */
    function obstacle() {
        if (db.installation.state !== "ready") {
            return {text: db.t("The trainer's environment is not ready.")};
        }
        if (db.run.active) {
            return {text: db.t("A training is running: {name}.", {name: db.run.active}), show: () => db.show("live", db.run.active)};
        }
        if (db.run.starting) {
            return {text: db.t("A training is being started."), show: () => db.show("live", "")};
        }
        const [mistake] = db.form.mistakes();
        if (mistake) {
            return {text: mistake[1], where: mistake[0]};
        }
        if (db.model.isMissing()) {
            return {text: db.t("There is no checkpoint to begin with yet."), where: "model", beginning: true};
        }
        if (db.concepts.busy()) {
            return {text: db.t("The photos are on their way."), beginning: true};
        }
        const all = db.form.value.concepts, empty = all.findIndex((concept) => !concept.instance_data_dir);
        if (empty >= 0) {
            const text = all.length > 1 ? db.t("Concept {n} has no photos yet: drop some, or name their folder.", {n: empty + 1})
                : db.t("Drop some photos first, or name their folder.");
            return {text, show: all.length > 1 ? () => db.fields.reveal("concepts[" + empty + "].instance_data_dir") : null, beginning: true};
        }
        if (errors.length) {
            return {problems: errors};
        }
        if (asked || !db.plan.found || formText() !== askedFor) {
            return {text: db.t("Planning …"), quiet: true};
        }
        return null;
    }

    /** The field that a reason is about, at the beginning of its line, unless the reason calls it by its label. */
    function titled(where, text) {
        const place = where ? db.fields.find(where) : null;
        const label = place && place.root.querySelector("label");
        if (!label) {
            return null;
        }
        const concept = db.form.value.concepts.length > 1 ? /^concepts\[(\d+)\]/.exec(place.where) : null;
        const isCalled = text.startsWith(db.t("“{label}”", {label: label.textContent}));
        const title = [concept ? db.t("Concept {n}", {n: Number(concept[1]) + 1}) : "", isCalled ? "" : label.textContent];
        return title.some(Boolean) ? db.h("strong", {}, db.list(title.filter(Boolean)) + ": ") : null;
    }

    const showButton = (where) => (where && db.fields.find(where) ? db.button(db.t("Show"), () => db.fields.reveal(where), {class: "dbt-link"}) : null);

    function drawButton() {
        const found = obstacle();
        train.disabled = Boolean(found) || starting;
        db.setText(train, starting ? db.t("Starting …") : db.t("Train"));
        db.setText(status, asked || (found && found.quiet) ? db.t("Planning …") : "");
        if (!found || found.quiet) {
            db.fill(reason);
            return;
        }
        const own = found.problems ? [] : [found];
        // the next training is prepared while one runs: what is wrong with it is said meanwhile
        const problems = found.problems || (found.show && !found.beginning ? errors : []);
        db.fill(reason, own.map((one) => line(one, one.text, one.show || one.beginning)),
            problems.map((one) => line(one, db.sentences(one.text, one.remedy), isOfRunning(one))));
    }

    /** Why Train is off: of which field, what, and the way there. `isCalm`: nothing is wrong yet. */
    function line(about, text, isCalm) {
        return db.h("div", {class: "dbt-note " + (isCalm ? "" : "dbt-error")}, titled(about.where, text), db.h("span", {}, text), " ",
            about.show ? db.button(db.t("Show"), about.show, {class: "dbt-link"}) : showButton(about.where));
    }

    /** Each problem of an answer, for there may be several, without the place that its field shows already. */
    const problemsOf = (problem) => (!problem ? [] : ((problem.more || {}).problems || [problem]).map(placed));
    const placed = (problem) => (db.fields.find(problem.where)
        ? {...problem, text: String(problem.text).replace(new RegExp("^(?:concept \\d+, \\w+|" + nameIn(problem.where) + "): "), "")} : problem);
    const nameIn = (where) => /\w+$/.exec(where)[0];  // concepts[0].class_prompt is class_prompt

    /** Whether only the training that runs is in the way, and nothing is wrong with the form: its end changes that. */
    const isOfRunning = (problem) => Boolean(db.run.active) && / is being made at this moment by the run /.test(problem.text);

    /** Whether a concept's photos are still those that the last plan has looked at. */
    const isOfFolder = (index) => advised.folders[index] === (db.form.value.concepts[index] || {}).instance_data_dir;

    const formText = () => JSON.stringify(db.form.asked());
    const conceptsText = () => JSON.stringify(db.form.value.concepts);

    async function ask() {
        stale = false;
        const waits = db.form.value.concepts.some((concept) => !concept.instance_data_dir);  // nothing is wrong yet
        if (db.installation.state !== "ready" || db.form.mistakes().length || waits) {
            stopAsking();
            settleNothing(waits);
            return;
        }
        const form = db.form.asked(), text = JSON.stringify(form);
        stopAsking();
        asked = new AbortController();
        const own = asked;
        drawAll();
        try {
            const found = await db.api.post("plan", {form, page: PAGE}, {signal: own.signal, timeout: 180000});
            if (own === asked) {
                settle(found, null, text);
            }
        } catch (problem) {
            if (own !== asked) {
                return;
            }
            if (problem.status === 0 || problem.status === 503) {
                settle(db.plan.found, problem, "");
                db.plan.soon(4000);
            } else {
                settle(null, problem, text);
            }
        }
    }

    function settleNothing(waits) {
        if (waits) {
            errors = [];
            askedFor = "";
            db.plan.found = null;
        }
        drawAll();
        db.concepts.planned();
    }

    function settle(found, problem, text) {
        asked = null;
        errors = problemsOf(problem);
        askedFor = text;
        const concepts = (found || (problem || {}).more || {}).concepts;  // of the photos all is said, whatever else is wrong
        if (concepts && text) {
            const planned = JSON.parse(text).concepts;
            advised = {of: JSON.stringify(planned), folders: planned.map((concept) => concept.instance_data_dir), concepts};
        }
        if (found || problem.status !== 0) {
            db.plan.found = found;
        }
        drawAll();
        db.concepts.planned();
    }

    function stopAsking() {
        if (asked) {
            asked.abort();
            asked = null;
        }
    }

    function drawAll() {
        draw();
        db.fields.showErrors(asked ? [] : errors.filter((one) => !isOfRunning(one)));
        drawButton();
    }

    async function start() {
        if (obstacle() || starting) {
            return;
        }
        starting = true;
        drawButton();
        try {
            const {run} = await db.api.post("runs", {form: db.form.asked()}, {timeout: 300000});
            db.run.awaited = !run;  // the trainer has not made its folder yet
            db.following.hear({active: run, starting: !run});
            db.show("live", run);
        } catch (problem) {
            errors = problemsOf(problem);
            db.fields.showErrors(errors);
            if (problem.status === 400) {  // something is another than it was when the plan was made: all of it is looked at again
                db.concepts.lookAgain();
                askedFor = "";
                db.plan.soon();
            }
            db.failed(problem);
        }
        starting = false;
        drawButton();
        db.plan.seen();
    }

    db.plan = {
        found: null,

        /** What the trainer said of each concept; what is wrong elsewhere in the form takes nothing of it away. */
        concepts() {
            const all = (db.plan.found || {}).concepts || (advised.of === conceptsText() ? advised.concepts : []);
            return all.map((concept, index) => (isOfFolder(index) ? concept : {...concept, advice: []}));
        },

        /** Whether an error of the plan's stands beside the field of that place. */
        isWrong: (where) => Boolean(!asked && db.fields.find(where) && errors.some((error) => db.fields.find(error.where) === db.fields.find(where))),

        section() {
            facts = db.h("dl", {class: "dbt-facts-list"});
            notes = db.h("ul", {class: "dbt-advice"});
            reason = db.h("div", {class: "dbt-reason", id: "dbt_reason", role: "status"});
            status = db.h("span", {class: "dbt-status"});
            train = db.button(db.t("Train"), start, {class: "dbt-primary dbt-train", id: "dbt_train", "aria-describedby": "dbt_reason"});
            const again = db.button("↻", () => { askedFor = ""; db.plan.soon(0); }, {class: "dbt-square", title: db.t("Plan again"), "aria-label": db.t("Plan again")});
            box = db.h("section", {class: "dbt-card dbt-plan", "aria-label": db.t("Plan")},
                db.h("div", {class: "dbt-card-head"}, db.h("h2", {}, db.t("Plan")), status, db.h("span", {class: "dbt-space"}), again),
                facts, notes, db.h("div", {class: "dbt-go"}, reason, train));
            return box;
        },

        /** Plans once the form has been left alone for a moment. */
        soon(wait) {
            clearTimeout(timer);
            timer = setTimeout(ask, wait === undefined ? WAIT : wait);
        },

        /** After any change: plans if the form is another than that of the last plan. */
        changed() {
            const isWrong = db.form.mistakes().length > 0;
            if (formText() !== askedFor || isWrong) {
                db.plan.soon();
            }
            if (isOfAnother !== isWrong) {
                draw();
            }
            drawButton();
        },

        /** What a plan rests on became another: names are taken and given back with runs. Asked while somebody can see it. */
        again() {
            askedFor = "";
            errors = [];  // they may be none any more
            stale = true;
            db.plan.seen();
        },

        /** The plan may have come into sight. */
        seen() {
            if (stale && !starting && db.view === "new" && db.isVisible()) {
                db.plan.soon(0);
            }
        },

        refresh: drawAll,
        refreshButton: drawButton,
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
