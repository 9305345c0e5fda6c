"use strict";
/* The page: draws itself into the tab's root, and ties its parts together. */
(function (db) {
    const VIEWS = [{name: "new", title: "New training"}, {name: "live", title: "Live"}, {name: "runs", title: "Runs"}];
    let panels = {}, tabs = {}, banner = null, opened = null, note = null, groups = null, drawn = false;

    db.parts = {};
    db.run = {active: ""};
    db.view = "new";

    /** Whether anybody can see the tab: nothing is polled while nobody can. */
    db.isVisible = () => document.visibilityState === "visible" && Boolean(db.root) && db.root.offsetParent !== null;

    db.show = function (view, run) {
        db.view = view;
        for (const {name} of VIEWS) {
            const on = name === view;
            panels[name].hidden = !on;
            tabs[name].setAttribute("aria-selected", on);
            tabs[name].tabIndex = on ? 0 : -1;
        }
        if (run !== undefined) {
            db.live.show(run);
        }
        db.live.now();
        if (view === "runs") {
            db.runs.soon();
        }
        db.plan.seen();
    };

    db.markActive = function () {
        tabs.live.classList.toggle("dbt-live-dot", Boolean(db.run.active));
        tabs.live.title = db.run.active ? db.t("{name} is running.", {name: db.run.active}) : "";
        db.live.aside();
    };

    function navigation() {
        const bar = db.h("div", {class: "dbt-nav", role: "tablist", "aria-label": db.t("DreamBooth")});
        VIEWS.forEach(({name, title}) => {
            tabs[name] = db.h("button", {type: "button", role: "tab", id: "dbt_nav_" + name, "aria-controls": "dbt_view_" + name,
                onclick: () => db.show(name, name === "live" && !db.live.name ? db.run.active : undefined)}, db.t(title));
            bar.append(tabs[name]);
        });
        bar.addEventListener("keydown", (event) => {
            const at = VIEWS.findIndex(({name}) => name === db.view);
            const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: VIEWS.length - 1}[event.key];
            if (to !== undefined) {
                const {name} = VIEWS[(to + VIEWS.length) % VIEWS.length];
                db.show(name);
                tabs[name].focus();
                event.preventDefault();
            }
        });
        return bar;
    }

    const card = (number, title, ...children) => db.h("section", {class: "dbt-card", id: "dbt_card_" + number},
        db.h("h2", {}, db.h("span", {class: "dbt-number", "aria-hidden": "true"}, String(number)), title), ...children);

    /** The settings' fields: common ones in sight in their section, others in accordions with a count of what was changed. */
    function settingFields(section, fields) {
        const own = db.page.groups.filter((group) => (group.section || "preset") === section);
        const common = own.flatMap((group) => group.fields.filter((entry) => entry.common));
        const grid = db.h("div", {class: "dbt-grid"}, common.map((entry) => {
            const field = db.fields.setting(entry, db.model.makers[entry.name]);
            fields.set(entry.name, field);
            return field.root;
        }));
        const accordions = own.filter((group) => group.fields.some((entry) => !entry.common)).map((group) => {
            const rest = group.fields.filter((entry) => !entry.common);
            const accordion = db.accordion(db.t(group.title), {"data-group": group.name},
                db.h("div", {class: "dbt-grid"}, rest.map((entry) => db.fields.setting(entry, db.model.makers[entry.name]).root)));
            groups.push({accordion, names: rest.map((entry) => entry.name)});
            return accordion;
        });
        return {grid, accordions: db.h("div", {class: "dbt-accordions"}, accordions)};
    }

    function newTraining() {
        groups = [];
        const fields = new Map();
        const model = settingFields("model", fields), preset = settingFields("preset", fields);
        db.model.section(fields);
        opened = db.h("div", {class: "dbt-opened", "aria-live": "polite"});
        return db.h("div", {class: "dbt-columns"},
            db.h("div", {class: "dbt-left"}, toolbar(), opened,
                card(1, db.t("Model"), model.grid, model.accordions),
                card(2, db.t("Concepts"), ...db.concepts.section()),
                card(3, db.t("Preset"), ...db.presets.section(), preset.grid, preset.accordions)),
            db.h("div", {class: "dbt-right"}, db.plan.section()));
    }

    function toolbar() {
        const again = db.button(db.t("Start afresh"), () => askAfresh(again), {class: "dbt-small", id: "dbt_afresh",
            title: db.t("Every setting back to its beginning")});
        const file = db.h("input", {type: "file", accept: ".json,.yaml,.yml", class: "dbt-file", id: "dbt_open_file", "aria-label": db.t("Open a file")});
        file.addEventListener("change", () => { openFile(file.files[0]); file.value = ""; });
        return db.h("div", {class: "dbt-toolbar"}, file,
            db.button(db.t("Open …"), () => file.click(), {class: "dbt-small", id: "dbt_open",
                title: db.t("A saved YAML, a concepts_list.json or a db_config.json of the old extension")}),
            db.button(db.t("Save as YAML"), save, {class: "dbt-small", id: "dbt_save", title: db.t("The whole form as a file; the command line takes it too")}),
            again);
    }

    const inOrder = (form) => JSON.stringify(Object.entries(form).sort(([one], [other]) => (one < other ? -1 : 1)));
    /** Whether the form is as a new one begins: such a one is nobody's work. */
    const isUntouched = () => inOrder(db.form.value) === inOrder(db.form.tidied(newForm()));

    function askAfresh(button) {
        if (isUntouched()) {
            afresh();
        } else {
            db.confirm(button, db.t("Give up what stands in this form?"), db.t("Start afresh"), afresh);
        }
    }

    async function openFile(file) {
        if (!file) {
            return;
        }
        if (file.size > 2 ** 20) {
            db.failed({text: db.t("{name} is too large to hold settings.", {name: file.name})});
            return;
        }
        try {
            const found = await db.api.post("open", {kind: "file", name: file.name, content: await file.text()});
            db.opened(found.form, found.not_taken || []);
        } catch (error) {
            db.fill(opened, unopened(file, error), note);  // the form is still what it was, and so is the way back
        }
    }

    /** Why a file was not opened, with the place in it. */
    function unopened(file, error) {
        const isPlace = String(error.where).startsWith(file.name.slice(0, 80));
        const shown = db.problem(error);
        if (error.status > 0) {
            shown.prepend(db.h("strong", {}, db.said(isPlace ? error.where : file.name) + ": "));
        }
        return shown;
    }

    /** What is to be said of the form that was opened last, until it is understood. */
    function say(...parts) {
        note = parts.length ? db.h("div", parts[0], parts.slice(1)) : null;
        db.fill(opened, note);
    }

    /** Takes a form from a file or a run; what was not taken is listed by name. */
    db.opened = function (form, notTaken) {
        const before = isUntouched() ? null : db.keeping.snapshot();
        if (Object.keys(form).every((name) => name === "concepts")) {
            db.form.setAll(form);  // a list of concepts says nothing of any other setting
            db.form.changed(true);
        } else {
            db.presets.fresh("");
            const concepts = (form.concepts || []).length ? form.concepts : newForm().concepts;
            db.form.load({...form, concepts, model: form.model || db.model.default()});
        }
        notTaken = [...notTaken, ...db.form.idle().filter((name) => name in form)];
        db.show("new");
        const back = before ? db.button(db.t("Back to the form before"), () => putBack(before), {class: "dbt-link", id: "dbt_put_back"}) : null;
        const understood = db.button(db.t("Understood"), () => say(), {class: "dbt-link"});
        if (notTaken.length) {
            say({class: "dbt-note dbt-warning"}, db.h("span", {}, db.t("Taken over, but for what means nothing here:")), " ",
                db.h("code", {}, notTaken.join(", ")), " ", understood, " ", back);
        } else {
            say(...(back ? [{class: "dbt-note"}, db.h("span", {}, db.t("Taken over.")), " ", understood, " ", back] : []));
            db.toast(db.t("Taken over."));
        }
        opened.scrollIntoView({block: "nearest"});
    };

    function putBack(before) {
        db.keeping.restore(before);
        say();
    }

    async function save() {
        try {
            const found = await db.api.post("save", {form: db.form.asked()});
            const url = URL.createObjectURL(new Blob([found.yaml], {type: "application/yaml"}));
            db.h("a", {href: url, download: found.name || "dreambooth.yaml"}).click();
            setTimeout(() => URL.revokeObjectURL(url), 10000);
        } catch (error) {
            db.failed(error);
        }
    }

    function afresh() {
        db.keeping.restore({...beginning({}), family: db.model.family});
        say();
    }

    /** A new form: the loaded checkpoint, the first preset, one concept with its prompts. */
    function newForm() {
        const first = (db.page.presets || [])[0];
        const concept = first ? {instance_prompt: first.instance_prompt.replace("{word}", (first.words || [])[0] || "").replace("{kind}", first.kinds[0]),
            class_prompt: first.class_prompt.replace("{kind}", first.kinds[0])} : {};
        return {model: db.model.default(), ...(first || {}).settings, concepts: [concept]};
    }

    /** A form to begin with, and its preset: what is `kept` of an earlier visit, or a new one. */
    function beginning(kept) {
        const form = kept.form || {};
        const begun = {...form, model: form.model || db.model.default()};
        begun.concepts = (begun.concepts || []).filter((concept) => Object.keys(concept).length);
        const isNew = Object.keys(begun).every((name) => ["model", "concepts"].includes(name)) && !begun.concepts.length;
        const first = (db.page.presets || [])[0];
        if (isNew && first) {
            return {form: {...newForm(), model: begun.model}, preset: first.name};
        }
        if (!begun.concepts.length) {
            begun.concepts = newForm().concepts;
        }
        return {...kept, form: begun};
    }

    function onChange(whole) {
        db.fields.refresh(whole);
        if (whole) {
            db.concepts.draw();
        } else {
            db.concepts.refresh();
        }
        db.presets.refresh();
        db.model.refresh();
        groups.forEach(({accordion, names}) => {
            accordion.hidden = !names.some((name) => db.form.means(name));
            const changed = names.filter((name) => !db.form.isDefault(name)).length;
            accordion.setCount(changed ? db.t("{n} changed", {n: changed}) : "");
        });
        db.plan.changed();
    }

    function awayBanner() {
        banner = db.h("div", {class: "dbt-away", role: "alert", hidden: true},
            db.t("The WebUI does not answer. A training goes on without it; this page comes back by itself."));
        let timer = 0;
        db.api.onAway((away) => {
            banner.hidden = !away;
            clearInterval(timer);
            if (away) {
                timer = setInterval(() => db.isVisible() && db.api.get("installation", {timeout: 4000}).catch(() => null), 3000);
            } else {
                db.runs.soon();
                db.live.now();
                db.following.now();
                db.model.listAgain();
            }
        });
        return banner;
    }

    function draw() {
        db.form.define(db.page.groups);
        db.model.prepare();
        panels = {};
        const installation = db.installation.section();
        const nav = navigation();
        db.parts.toast = db.h("div", {class: "dbt-toast", role: "status", "aria-live": "polite"});
        panels.live = db.h("div", {}, db.live.section());
        panels.runs = db.h("div", {}, db.runs.section());
        panels.new = db.h("div", {}, newTraining());
        VIEWS.forEach(({name}) => {
            panels[name].id = "dbt_view_" + name;
            panels[name].setAttribute("role", "tabpanel");
            panels[name].setAttribute("aria-labelledby", "dbt_nav_" + name);
        });
        db.fill(db.root, awayBanner(), installation, nav, panels.new, panels.live, panels.runs, db.parts.toast);
        db.form.onChange(onChange);
        db.installation.begin(db.page.installation);
        db.keeping.restore(beginning({...db.page.kept, form: db.page.form}));
        db.keeping.begin();
        db.following.begin(db.page.active || "", db.page.listed);
        db.show(db.run.active ? "live" : "new", db.run.active);
        db.markActive();
        db.runs.soon();
        drawn = true;
    }

    async function load() {
        try {
            db.page = await db.api.get("page", {timeout: 60000});
            draw();
            db.root.classList.add("dbt-drawn");
        } catch (error) {
            const isOurs = typeof error.status === "number";
            const text = isOurs ? [error.text, error.remedy].filter(Boolean).join(" ") : String(error);
            db.fill(db.root, db.h("p", {class: "dbt-problem", role: "alert"}, db.t("The tab could not be drawn."), " ", db.said(text)),
                db.button(db.t("Try again"), load));
            if (isOurs && error.status === 0) {
                setTimeout(load, 4000);
            }
            if (!isOurs) {
                throw error;
            }
        }
    }

    /** Called when the tab may have come into sight: what was not polled meanwhile is asked at once. */
    function wake() {
        if (drawn && db.isVisible()) {
            db.live.now();
            db.runs.soon();
            db.following.now();
            db.plan.seen();
        }
    }

    function begin() {
        const root = document.getElementById("dreambooth_trainer_root") || (window.gradioApp && window.gradioApp().querySelector("#dreambooth_trainer_root"));
        if (!root || root === db.root) {
            return Boolean(root);
        }
        db.root = root;
        const prose = root.closest(".prose");  // gradio's look for texts would recolour every part of ours
        if (prose) {
            prose.classList.remove("prose");
        }
        db.fill(root, db.h("p", {class: "dbt-starting"}, db.t("The page is being drawn …")));
        load();
        document.addEventListener("visibilitychange", wake);
        if (window.onUiTabChange) {
            window.onUiTabChange(wake);
        }
        if (window.IntersectionObserver) {
            new IntersectionObserver(wake).observe(root);
        }
        return true;
    }

    if (window.onUiLoaded) {
        window.onUiLoaded(begin);
    } else {
        const timer = setInterval(() => begin() && clearInterval(timer), 200);
    }
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
