"use strict";
/* Presets, and the two words of a prompt: the rare word and what the subject is. */
(function (db) {
    let chosen = "", adapted = null, cards = null, detail = null;
    const typed = new Map();  // what the subject is, in its owner's words: no preset changes it

    const presets = () => db.page.presets || [];
    const fillIn = (template, word, kind) => template.replace("{word}", word).replace("{kind}", kind);
    const wordsOf = (text) => String(text || "").split(/\s+/).filter(Boolean);
    const bare = (word) => word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");

    /** {word, kind, at} of a concept's prompts: the word that only the instance prompt has, and what follows it. */
    function parse(concept) {
        const words = wordsOf(concept.instance_prompt);
        const others = wordsOf(concept.class_prompt).map(bare);
        const rare = presets().flatMap((preset) => preset.words || []);
        let found = words.filter((word) => rare.includes(bare(word)));
        if (found.length !== 1 && others.length) {
            found = words.filter((word) => !others.includes(bare(word)) && !["a", "an", "the"].includes(bare(word)));
        }
        if (found.length !== 1) {
            const styled = /\bin (\S+) style\b/.exec(concept.instance_prompt || "");
            found = styled ? [styled[1]] : templateWord(concept);
        }
        if (found.length !== 1) {
            return null;
        }
        const at = words.indexOf(found[0]);
        return {word: found[0], at, words, kind: words.slice(at + 1).join(" ")};
    }

    function templateWord(concept) {
        const words = wordsOf(concept.instance_prompt);
        return words.length >= 4 && words[0] === "photo" && words[1] === "of" && !concept.class_prompt ? [words[2]] : [];
    }

    function compose(preset, word, kind) {
        return {instance_prompt: fillIn(preset.instance_prompt, word, kind), class_prompt: fillIn(preset.class_prompt, word, kind)};
    }

    /** Whether the prompts are a preset's own, so that another preset may put its own in their place. */
    function isComposed(concept) {
        const parts = parse(concept);
        return Boolean(parts) && presets().some((preset) => {
            const made = compose(preset, parts.word, parts.kind);
            return made.instance_prompt === concept.instance_prompt && made.class_prompt === (concept.class_prompt || "");
        });
    }

    const keyOf = (template, word) => template + "\n" + word;
    /** The template that a concept's prompt was made from; a word for the subject belongs to it. */
    const templateOf = ({word, kind, words}) => (presets().find((preset) =>
        fillIn(preset.instance_prompt, word, kind) === words.join(" ")) || {}).instance_prompt;

    function recompose(concept, preset) {
        const empty = !concept.instance_prompt && !concept.class_prompt;
        if (!empty && !isComposed(concept)) {
            return concept;
        }
        const parts = parse(concept) || {word: db.words.unused(), kind: ""};
        const isSuggested = presets().some((other) => other.kinds[0] === parts.kind);
        if (parts.kind && parts.words && !isSuggested) {
            typed.set(keyOf(templateOf(parts), parts.word), parts.kind);
        }
        const kept = preset.kinds.includes(parts.kind) ? parts.kind : preset.kinds[0];
        const kind = typed.get(keyOf(preset.instance_prompt, parts.word)) || kept;
        const made = {...concept, ...compose(preset, parts.word, kind)};
        return Object.fromEntries(Object.entries(made).filter(([, value]) => value !== ""));
    }

    const names = () => [...new Set(presets().flatMap((preset) => [preset, ...(preset.variants || [])].flatMap((one) => Object.keys(one.settings))))]
        .filter((name) => db.form.entries.has(name));
    const byName = (name) => presets().find((preset) => preset.name === name);
    /** What variants are chosen by: the model's family and the kind of result. */
    const situation = () => ({family: db.model.family, kind: db.form.get("output_kind")});
    const variantOf = (preset, {family, kind}) => (preset.variants || []).find((one) => family.startsWith(one.family) && one.kinds.includes(kind));

    /** A setting as the preset has it, for the situation that is or another one. */
    function valueIn(preset, name, where) {
        const settings = {...preset.settings, ...(variantOf(preset, where || situation()) || {}).settings};
        return name in settings ? settings[name] : db.form.default(name);
    }

    /** What a preset's card says: of class images only where they are made. */
    const helpOf = (preset) => db.joined(...[preset.help, valueIn(preset, "prior_loss_weight") ? preset.help_with_prior : ""]
        .filter(Boolean).map((text) => db.t(text)));

    const fits = (preset, where) => names().every((name) => JSON.stringify(db.form.get(name)) === JSON.stringify(valueIn(preset, name, where)));

    const RATES = ["learning_rate", "text_encoder_learning_rate"];
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    const isAdapter = ({kind}) => ["lora", "lycoris"].includes(kind);

    /** Another model or kind of result: what the preset filled in goes with it, but for what was changed since. Rates of a
       whole model and of an adapter are fifty times apart: one that nobody typed is never carried from one to the other. */
    function adapt() {
        const now = situation(), before = adapted;
        adapted = now;
        if (!before || same(before, now)) {
            return false;
        }
        const preset = byName(chosen) || presets().find((one) => fits(one, before)), values = {};
        for (const name of preset ? names() : []) {
            const was = valueIn(preset, name, before), is = valueIn(preset, name, now);
            if (!same(was, is) && same(db.form.kept(name), was) && !db.form.typed.has(name)) {
                values[name] = is;
            }
        }
        if (isAdapter(before) !== isAdapter(now)) {
            RATES.filter((name) => !(name in values) && !db.form.isDefault(name) && !db.form.typed.has(name)).forEach((name) => {
                values[name] = preset ? valueIn(preset, name, now) : db.form.default(name);
            });
        }
        const changed = Object.keys(values).filter((name) => !same(db.form.kept(name), values[name]));
        if (!changed.length) {
            return false;
        }
        db.form.setAll(values);
        const rates = RATES.filter((name) => changed.includes(name)).map((name) => db.t(db.form.entries.get(name).label));
        if (rates.length) {
            db.toast(db.t("Now as is usual for this kind of result: {names}.", {names: db.list(rates)}));
        }
        return true;
    }

    function choose(preset) {
        chosen = preset.name;
        adapted = situation();
        const values = {};
        names().forEach((name) => { values[name] = valueIn(preset, name); });
        values.concepts = db.form.copy().concepts.map((concept) => recompose(concept, preset));
        names().forEach((name) => { db.form.wrong.delete(name); db.form.typed.delete(name); });
        db.form.setAll(values);
        db.form.changed(true);
    }

    /** The chosen preset, changed or not; else the one that the form fits. */
    function current() {
        const own = byName(chosen);
        return own || presets().find((preset) => fits(preset)) || null;
    }

    function changedText(preset) {
        const changed = names().filter((name) => JSON.stringify(db.form.get(name)) !== JSON.stringify(valueIn(preset, name)));
        return changed.length ? db.t("Changed since: {names}.", {names: db.list(changed.map((name) => db.t(db.form.entries.get(name).label)))}) : "";
    }

    function drawDetail(preset) {
        if (!preset) {
            db.fill(detail, db.h("span", {}, db.t("Settings of your own. A preset fills in steps, rates, text encoder and class images.")));
            return;
        }
        const changed = changedText(preset), from = {...preset, ...variantOf(preset, situation())};
        db.fill(detail,
            db.h("span", {class: "dbt-grade", title: db.t((preset.grades || {})[from.grade] || "")}, db.t("Evidence {grade}", {grade: from.grade})), " ",
            db.h("span", {}, db.t(from.evidence)), " ",
            db.h("a", {href: from.source.url, target: "_blank", rel: "noopener noreferrer"}, from.source.title),
            changed ? db.h("span", {class: "dbt-changed-text"}, " " + changed + " ",
                db.button(db.t("Back to the preset"), () => choose(preset), {class: "dbt-link"})) : null);
    }

    db.words = {
        parse,
        setWord(concept, word) {
            const parts = parse(concept);
            const template = templateOf(parts), own = typed.get(keyOf(template, parts.word));
            if (own) {
                typed.set(keyOf(template, word), own);
            }
            parts.words[parts.at] = word;
            return {instance_prompt: parts.words.join(" ")};
        },
        setKind(concept, kind) {
            const parts = parse(concept);
            typed.set(keyOf(templateOf(parts), parts.word), kind);
            const changed = {instance_prompt: [...parts.words.slice(0, parts.at + 1), kind].join(" ").trim()};
            const class_ = concept.class_prompt || "";
            if (class_ && class_.endsWith(parts.kind)) {
                changed.class_prompt = (class_.slice(0, class_.length - parts.kind.length) + kind).trim();
            }
            return changed;
        },
        /** A rare word that no concept of the form has yet. */
        unused(not) {
            const used = db.form.value.concepts.map((concept) => (parse(concept) || {}).word).concat(not || []);
            const words = (current() || presets()[0] || {}).words || [];
            return words.find((word) => !used.includes(word)) || words[(words.indexOf(not) + 1) % words.length] || "";
        },
        kinds: () => [...new Set(((current() || {}).kinds || []).concat(presets().flatMap((preset) => preset.kinds)))],
    };

    db.presets = {
        current,
        chosen: () => chosen,
        choose: (name) => byName(name) && choose(byName(name)),
        fresh(name) {
            chosen = name || "";
            adapted = null;  // the form that comes is taken as it is
            typed.clear();
        },

        /** A concept to begin with, as the preset has it. */
        concept() {
            const preset = current() || presets()[0];
            return preset ? compose(preset, db.words.unused(), preset.kinds[0]) : {};
        },

        section() {
            cards = db.h("div", {class: "dbt-presets", role: "radiogroup", "aria-label": db.t("Preset")});
            detail = db.h("div", {class: "dbt-evidence", "aria-live": "polite"});
            db.fill(cards, presets().map((preset) => db.h("label", {class: "dbt-preset", "data-preset": preset.name},
                db.h("input", {type: "radio", name: "dbt_preset", value: preset.name, onchange: () => choose(preset)}),
                db.h("span", {class: "dbt-preset-title"}, db.t(preset.title)),
                db.h("span", {class: "dbt-help"}, helpOf(preset)))));
            return [cards, detail];
        },

        refresh() {
            if (adapt()) {
                return;  // drawn already, with the new values
            }
            const preset = current();
            cards.querySelectorAll("input").forEach((input) => {
                db.setText(input.parentElement.querySelector(".dbt-help"), helpOf(byName(input.value)));
                input.checked = Boolean(preset) && input.value === preset.name;
                input.parentElement.classList.toggle("dbt-chosen", input.checked);
            });
            drawDetail(preset);
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
