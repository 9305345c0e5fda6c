"use strict";
/* The form: one object with the names of a config file, in which only what differs from the default stands. What means
   nothing for the chosen kind of result is kept in it for when that kind comes back, and takes no part meanwhile. */
(function (db) {
    const listeners = [];
    const clone = (value) => JSON.parse(JSON.stringify(value));
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

    db.form = {
        value: {concepts: []},
        entries: new Map(),
        wrong: new Map(),  // what was typed and cannot be a value: where → text

        typed: new Set(),  // settings that somebody has written by hand since the form was opened

        define(groups) {
            groups.forEach((group) => group.fields.forEach((entry) => this.entries.set(entry.name, entry)));
        },

        /** Draws another form; `typed` names what of it was written by hand. */
        load(form, typed) {
            this.value = clone(form || {});
            this.value.concepts = Array.isArray(this.value.concepts) ? this.value.concepts : [];
            this.wrong.clear();
            this.typed = new Set(typed || []);
            Object.keys(this.value).forEach((name) => this.tidy(name));
            this.changed(true);
        },

        default(name) {
            const entry = this.entries.get(name);
            return entry ? entry.default : undefined;
        },

        /** A setting as it takes part. */
        get(name) {
            return name in this.value && this.takesPart(name) ? this.value[name] : this.default(name);
        },

        /** A setting as it was filled in, for whatever kind of result. */
        kept(name) {
            return name in this.value ? this.value[name] : this.default(name);
        },

        /** Whether a setting, or a field that is none, means something for the chosen kind of result. */
        means(name) {
            const kinds = (this.entries.get(name) || {}).kinds || [];
            return !kinds.length || kinds.includes(this.kept("output_kind"));
        },

        /** The choices of a setting that the chosen kind of result takes. */
        choices(entry) {
            const kinds = entry.choice_kinds || {};
            return entry.choices.filter((choice) => !kinds[choice] || kinds[choice].includes(this.kept("output_kind")));
        },

        takesPart(name) {
            const kinds = ((this.entries.get(name) || {}).choice_kinds || {})[this.value[name]];
            return this.means(name) && (!kinds || kinds.includes(this.kept("output_kind")));
        },

        /** What is planned and trained: the form without what takes no part. */
        asked() {
            return clone(Object.fromEntries(Object.entries(this.value).filter(([name]) => this.takesPart(name))));
        },

        /** The names of what stands in the form and takes no part. */
        idle() {
            return Object.keys(this.value).filter((name) => !this.takesPart(name));
        },

        /** What cannot be a value and takes part: [where, text] each. */
        mistakes() {
            return [...this.wrong].filter(([where]) => this.means(where));
        },

        tidy(name) {
            const entry = this.entries.get(name);
            if (entry && (this.value[name] === null || same(this.value[name], entry.default))) {
                delete this.value[name];
            }
        },

        /** A form without what is the default anyway. */
        tidied(form) {
            return Object.fromEntries(Object.entries(form).filter(([name, value]) => {
                const entry = this.entries.get(name);
                return value !== null && !(entry && same(value, entry.default));
            }));
        },

        set(name, value) {
            this.setAll({[name]: value});
        },

        setAll(values) {
            const before = JSON.stringify(this.value);
            for (const [name, value] of Object.entries(values)) {
                this.value[name] = value;
                this.tidy(name);
            }
            if (JSON.stringify(this.value) !== before) {
                this.changed(false);
            }
        },

        isDefault(name) {
            return same(this.get(name), this.default(name));
        },

        copy: () => clone(db.form.value),

        /** `whole`: another form was opened, so that everything is drawn anew. */
        changed(whole) {
            listeners.forEach((listener) => listener(Boolean(whole)));
        },

        onChange: (listener) => listeners.push(listener),
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
