"use strict";
/* Texts in the WebUI's language, and numbers as people read them. Texts stay whole sentences with {names} in them,
   so that localizations/*.json can turn their order round. */
(function (db) {
    const OURS = "DreamBooth: ";

    /** A text in the WebUI's language. `DreamBooth: Seed` is our Seed: under its bare name ours would become the WebUI's too. */
    function known(text) {
        const table = window.localization || {}, has = (key) => Object.prototype.hasOwnProperty.call(table, key);
        return has(OURS + text) ? table[OURS + text] : has(text) ? table[text] : undefined;
    }

    function fill(text, values) {
        return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
    }

    /** A text of the page, translated, with {name} filled in from `values`. */
    db.t = function (text, values) {
        return fill(known(text) || text, values || {});
    };

    /** One or many: `db.count(3, "{n} photo", "{n} photos")`; `values` fills in what else is named. */
    db.count = (n, one, many, values) => db.t(n === 1 ? one : many, {...values, n: n.toLocaleString()});

    const NUMBERS = new Set(["n", "m", "h", "s", "all", "step", "steps", "of", "done", "count", "low", "high"]);
    let patterns = null;

    /** Texts with {names} in the localization, as patterns: the trainer's sentences have numbers and names in them. */
    function makePatterns() {
        patterns = [];
        for (const key of Object.keys(window.localization || {})) {
            if (!/\{\w+\}/.test(key) || /^[\s\W]*\{\w+\}[\s\W]*$/.test(key)) {
                continue;
            }
            const names = [];
            const source = key.split(/\{(\w+)\}/).map((part, index) => {
                if (index % 2) {
                    names.push(part);
                    return NUMBERS.has(part) ? "(-?[\\d.,\u202f\u00a0]+)" : part === "photos" ? "([\\d.,]+ photos?)" : "(.+?)";
                }
                return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
            });
            patterns.push({key, names, test: new RegExp("^" + source.join("") + "$", "s")});
        }
        // the most said in words first, so that "{n} of {m}" does not take a whole sentence
        patterns.sort((a, b) => b.key.length - a.key.length);
    }

    /** A text that came from the trainer or the server, translated where the localization knows it. */
    db.said = (text) => said(text).text;

    /** A text as `db.said` has it, and its `form`: that without what is filled in ({}); none, if nothing translates it. */
    function said(text) {
        text = String(text || "");
        const whole = known(text);
        if (whole || !text || !window.localization) {
            return {text: whole || text, form: whole || ""};
        }
        if (text.includes("\n")) {  // a sentence, and a line for each thing that it is about
            const lines = text.split("\n").map((line) => ({...said(line.trim()), indent: /^\s*/.exec(line)[0]}));
            const form = lines.some((line) => line.form) ? lines.map((line) => line.form || "{}").join("\n") : "";
            return {text: lines.map((line) => line.indent + line.text).join("\n"), form};
        }
        if (!patterns) {
            makePatterns();
        }
        for (const {key, names, test} of patterns) {
            const found = test.exec(text);
            if (found) {
                const values = {}, forms = {};
                names.forEach((name, index) => {
                    const value = said(found[index + 1]);
                    values[name] = name === "names" && !value.form ? db.list(value.text.split(", ")) : value.text;
                    forms[name] = value.form || "{}";
                });
                return {text: fill(known(key), values), form: fill(known(key), forms)};
            }
        }
        return afterPlace(text);
    }

    /** `place: what`, where the place is a file or a setting, and only what is said of it is known. */
    function afterPlace(text) {
        const at = text.indexOf(": ");
        const rest = at > 0 ? said(text.slice(at + 2)) : {form: ""};
        if (!rest.form) {
            return {text, form: ""};
        }
        const place = said(text.slice(0, at));
        return {text: place.text + ": " + rest.text, form: (place.form || "{}") + ": " + rest.form};
    }

    let labels = null;

    /** The labels that settings have in the page, by their names in a file. */
    function settingLabels() {
        const groups = (db.page || {}).groups || [];
        const entries = [...((db.page || {}).concept_fields || []), ...groups.flatMap((group) => group.fields)];
        return new Map(entries.map((entry) => [entry.name, entry.label]));
    }

    /** A text whose settings are called as the page calls them: the trainer writes their names as a file has them. */
    db.named = function (text) {
        labels = labels && labels.size ? labels : settingLabels();
        text = text.replace(/`(?:python3 -m dreambooth )?(resume|stop)(?: [^`]*)?`/g, (_, command) =>
            db.t("“{label}”", {label: command === "stop" ? db.t("Stop") : db.t("Resume")}));  // a button here
        text = text.replace(/\bset (\w+): ([\w.]*\w)/g, (whole, name, value) =>
            (labels.has(name) ? db.t("set “{label}” to {value}", {label: db.t(labels.get(name)), value}) : whole));
        text = text.replace(/`(\w+)`|(^|[^\w./\\-])([a-z]+(?:_[a-z0-9]+)+)(?![\w/\\-]|\.\w)/g, (whole, quoted, before, name) => {
            const label = labels.get(quoted || name);
            return label ? (before || "") + db.t("“{label}”", {label: db.t(label)}) : whole;
        });
        return text.replace(/`([^`]+)`/g, (_, said) => db.t("“{label}”", {label: said}));
    };

    const CHINESE = /[\u3000-\u9fff\uff00-\uffef]/;

    /** Words of the trainer's as sentences: it writes them as parts of a line. Paths and names stay as they are. */
    db.sentences = (...texts) => db.joined(...texts.filter(Boolean).map(sentence));

    function sentence(whole) {
        const {text, form} = said(whole);
        const shown = db.named(text).trim(), last = shown[shown.length - 1];
        // the language is that of the sentence, whatever the names in it are written in
        const stop = /[.!?:…。！？：]/.test(last) ? "" : CHINESE.test(form.split("\n").pop()) ? "。" : ".";
        const isEnglish = !CHINESE.test(form);
        return (isEnglish && isWord(form || shown) ? shown[0].toUpperCase() + shown.slice(1) : shown) + stop;
    }

    /** Whether a text begins with a word, and not with a file that it is about (`my cat.jpg: it is empty`). A name at the
        beginning of a sentence stands in quotes: tests/test_first_words.py holds the trainer and the server to it. */
    const isWord = (text) => /^[a-z]+(?=[ ,'’])/.test(text) && !/^[^:\n]*\.\w+(, \w+ \d+)*: /.test(text);

    /** Things named one after the other, as the language lists them. */
    db.list = (things) => things.join(db.t(", "));

    /** Sentences one after the other; Chinese ones need no gap between them. */
    db.joined = (...sentences) => sentences.filter(Boolean).reduce((text, next) => text + db.gap(text) + next, "");
    db.gap = (text) => (text.includes("\n") ? "\n" : !text || /[。！？：；]$/.test(text) ? "" : " ");

    /** A number as it is typed: 0.000002 is 2e-6. */
    db.plainNumber = function (value) {
        if (typeof value !== "number" || !isFinite(value)) {
            return value === null || value === undefined ? "" : String(value);
        }
        if (value !== 0 && Math.abs(value) < 1e-3) {
            return value.toExponential().replace(/^(-?[\d.]+)e([+-]\d+)$/, (_, digits, power) =>
                String(parseFloat(Number(digits).toPrecision(7))) + "e" + Number(power));
        }
        return String(value);
    };

    db.size = function (bytes) {
        if (typeof bytes !== "number" || !isFinite(bytes)) {
            return "–";
        }
        const units = ["B", "kB", "MB", "GB", "TB"];
        let index = 0;
        while (bytes >= 1000 && index < units.length - 1) {
            bytes /= 1000;
            index += 1;
        }
        return (bytes >= 100 || index === 0 ? Math.round(bytes) : bytes.toFixed(1)) + " " + units[index];
    };

    db.duration = function (seconds) {
        if (typeof seconds !== "number" || !isFinite(seconds) || seconds < 0) {
            return "–";
        }
        seconds = Math.round(seconds);
        const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
        if (hours) {
            return db.t("{h} h {m} min", {h: hours, m: minutes});
        }
        if (seconds >= 600 || (minutes && seconds % 60 === 0)) {
            return db.t("{m} min", {m: minutes});
        }
        return minutes ? db.t("{m} min {s} s", {m: minutes, s: seconds % 60}) : db.t("{s} s", {s: seconds});
    };

    /** How long ago, from seconds since the epoch. */
    db.ago = function (time) {
        const seconds = Date.now() / 1000 - time;
        if (!(time > 0)) {
            return "–";
        }
        if (seconds < 60) {
            return db.t("just now");
        }
        if (seconds < 86400) {
            return db.t("{time} ago", {time: seconds < 3600 ? db.t("{m} min", {m: Math.floor(seconds / 60)}) : db.duration(seconds)});
        }
        return new Date(time * 1000).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
    };

    /** The last part of a path of any system. */
    db.baseName = (path) => String(path || "").split(/[\\/]/).filter(Boolean).pop() || "";
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
