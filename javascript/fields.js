"use strict";
/* A setting as a field: label, control, unit, help with its range, error beside it. All of it comes from the catalog. */
(function (db) {
    const all = new Map();  // where → field
    let number = 0;

    function rangeText(entry) {
        const unit = entry.unit ? " " + db.t(entry.unit) : "";
        const low = entry.minimum, high = entry.maximum;
        if (typeof low === "number" && typeof high === "number") {
            return db.t("From {low} to {high}.", {low: db.plainNumber(low), high: db.plainNumber(high) + unit});
        }
        return typeof low === "number" && low !== 0 ? db.t("At least {low}.", {low: db.plainNumber(low) + unit}) : "";
    }

    /** What was typed as a value; {wrong} where it cannot be one. */
    function parseNumber(text, entry) {
        text = text.trim();
        if (!text) {
            return {value: entry.default};
        }
        const value = Number(/^-?\d+,\d+$/.test(text) ? text.replace(",", ".") : text);
        if (Math.abs(value) > (entry.kind === "int" ? 2 ** 53 : Number.MAX_VALUE)) {
            return {wrong: rangeText(entry) || db.t("This number is too large.")};
        }
        if (!isFinite(value)) {
            return {wrong: db.t("This is not a number.")};
        }
        if (entry.kind === "int" && !Number.isInteger(value)) {
            return {wrong: db.t("This must be a whole number.")};
        }
        const low = entry.minimum, high = entry.maximum;
        if ((typeof low === "number" && value < low) || (typeof high === "number" && value > high)) {
            return {wrong: rangeText(entry) || db.t("At least {low}.", {low})};
        }
        return {value};
    }

    function parsePairs(text) {
        const pairs = {};
        for (const line of text.split("\n").map((part) => part.trim()).filter(Boolean)) {
            const at = line.search(/[=:]/);
            if (at < 1) {
                return {wrong: db.t("Write one name = value a line.")};
            }
            pairs[line.slice(0, at).trim()] = line.slice(at + 1).trim();
        }
        return {value: pairs};
    }

    /** Control makers by kind: each gives {control, show(value), read() → {value} or {wrong}}. */
    const MAKERS = {
        bool(entry, props) {
            const control = db.h("input", {...props, type: "checkbox"});
            return {control, show: (value) => { control.checked = Boolean(value); }, read: () => ({value: control.checked})};
        },
        choice(entry, props) {
            const control = db.h("select", props);
            let offered = "";
            const show = (value) => {
                const choices = db.form.choices(entry);
                if (choices.join() !== offered) {
                    offered = choices.join();
                    db.fill(control, choices.map((choice) => db.h("option", {value: choice}, choice)));
                }
                control.value = value;
            };
            return {control, show, read: () => ({value: control.value})};
        },
        /** Choices, and whatever else `entry.other` says. */
        open(entry, props) {
            const listId = props.id + "_choices";
            const control = db.h("input", {...props, type: "text", list: listId, spellcheck: "false"});
            const list = db.h("datalist", {id: listId}, entry.choices.map((choice) => db.h("option", {value: choice})));
            control.addEventListener("focus", () => control.select());
            return {control, list, show: (value) => { control.value = value || ""; }, read: () => ({value: control.value.trim() || entry.default})};
        },
        number(entry, props) {
            const control = db.h("input", {...props, type: "text", inputmode: entry.kind === "int" ? "numeric" : "decimal", spellcheck: "false"});
            return {control, show: (value) => { control.value = db.plainNumber(value); }, read: () => parseNumber(control.value, entry)};
        },
        dict(entry, props) {
            const control = db.h("textarea", {...props, rows: 2, spellcheck: "false"});
            const show = (value) => {
                control.value = Object.entries(value || {}).map(([name, item]) => name + " = " + item).join("\n");
            };
            return {control, show, read: () => parsePairs(control.value)};
        },
        text(entry, props) {
            const control = db.h("input", {...props, type: "text", spellcheck: /prompt/.test(entry.name) ? "true" : "false"});
            return {control, show: (value) => { control.value = value || ""; }, read: () => ({value: control.value})};
        },
    };

    function makerOf(entry) {
        if (entry.choices.length) {
            return entry.other ? MAKERS.open : MAKERS.choice;
        }
        return MAKERS[{int: "number", float: "number", bool: "bool", dict: "dict"}[entry.kind] || "text"];
    }

    /** `binding` has where, get(), set(value); `made` replaces the control (for models); `id` names it for tests. */
    function make(entry, binding, made) {
        number += 1;
        const id = binding.id || "dbt_f_" + entry.name;
        const helpId = "dbt_help_" + number, errorId = "dbt_error_" + number;
        const props = {id, "aria-describedby": helpId + " " + errorId, "data-where": binding.where};
        const part = made ? made(props) : makerOf(entry)(entry, props);
        const error = db.h("div", {class: "dbt-error-text", id: errorId, role: "alert"});
        const back = db.button("↺", () => { db.form.typed.delete(binding.where); binding.set(entry.default); part.show(binding.get()); tell(""); part.control.focus(); },
            {class: "dbt-back", title: db.t("Back to the default"), "aria-label": db.t("Back to the default")});
        const label = db.h("label", {for: id}, db.t(entry.label));
        const isCheck = entry.kind === "bool" && !made;
        const help = db.h("div", {class: "dbt-help", id: helpId}, db.joined(db.named(db.said(entry.help)), entry.other ? db.t("Or {other}.", {other: db.t(entry.other)}) : "", rangeText(entry)));
        const unit = entry.unit && !isCheck ? db.h("span", {class: "dbt-unit"}, db.t(entry.unit)) : null;
        const root = db.h("div", {class: "dbt-field" + (isCheck ? " dbt-check" : ""), "data-field": binding.where},
            isCheck
                ? db.h("div", {class: "dbt-line"}, part.control, label, back)
                : [db.h("div", {class: "dbt-line"}, label, back), db.h("div", {class: "dbt-control"}, part.control, part.list, unit)],
            help, error);

        function tell(text) {
            if (text) {
                db.form.wrong.set(binding.where, text);
            } else {
                db.form.wrong.delete(binding.where);
            }
            showError(text);
        }

        function showError(text) {
            db.setText(error, text || "");
            root.classList.toggle("dbt-wrong", Boolean(text));
            if (text) {
                part.control.setAttribute("aria-invalid", "true");
            } else {
                part.control.removeAttribute("aria-invalid");
            }
        }

        /** `whole`: another form was opened; else what somebody is just writing stays as it is written. */
        function refresh(whole) {
            root.hidden = !db.form.means(binding.where);
            if ((whole || document.activeElement !== part.control) && !db.form.wrong.has(binding.where)) {
                part.show(binding.get());
            }
            const changed = JSON.stringify(binding.get()) !== JSON.stringify(entry.default);
            root.classList.toggle("dbt-changed", changed && !made && !binding.plain);
            back.hidden = !changed || Boolean(made) || binding.plain;
        }

        function input() {
            const {value, wrong} = part.read();
            db.form.typed.add(binding.where);
            tell(wrong || "");
            if (wrong) {
                db.form.changed(false);
            } else {
                binding.set(value);
                db.form.changed(false);
            }
        }

        part.control.addEventListener(entry.kind === "bool" || part.control.tagName === "SELECT" ? "change" : "input", input);
        part.control.addEventListener("blur", () => { if (!db.form.wrong.has(binding.where)) { part.show(binding.get()); } });
        const field = {root, refresh, showError, control: part.control, where: binding.where};
        all.set(binding.where, field);
        part.show(binding.get());
        refresh();
        return field;
    }

    /** `concept 2, class_prompt` and `concepts[1].class_prompt` are one place. */
    function placeOf(where) {
        where = String(where || "").replace(/^.*concept (\d+), (\w+)$/, (_, n, name) => "concepts[" + (n - 1) + "]." + name);
        return where.replace(/^.*concept (\d+)$/, (_, n) => "concepts[" + (n - 1) + "].instance_data_dir");
    }

    db.fields = {
        make,

        /** The field of a setting by its name, bound to the form. */
        setting(entry, made) {
            const name = entry.name;
            return make(entry, {where: name, get: () => db.form.get(name), set: (value) => db.form.set(name, value)}, made);
        },

        find: (where) => all.get(placeOf(where)),

        forget(prefix) {
            for (const where of [...all.keys()]) {
                if (where.startsWith(prefix)) {
                    all.delete(where);
                    db.form.wrong.delete(where);
                }
            }
        },

        refresh: (whole) => all.forEach((field) => field.refresh(whole)),

        /** Shows the plan's errors, each beside its field, and takes away older ones. */
        showErrors(errors) {
            const shown = new Map();
            errors.forEach((error) => {
                const found = db.fields.find(error.where);
                if (found && !shown.has(found)) {
                    shown.set(found, db.sentences(error.text, error.remedy));
                }
            });
            all.forEach((field) => {
                if (shown.has(field)) {
                    field.showError(shown.get(field));
                } else if (!db.form.wrong.has(field.where)) {
                    field.showError("");
                }
            });
        },

        /** Opens the accordions around a field, scrolls to it and puts the cursor there. */
        reveal(where) {
            const found = db.fields.find(where);
            if (!found) {
                return;
            }
            for (let node = found.root; node; node = node.parentElement) {
                if (node.tagName === "DETAILS") {
                    node.open = true;
                }
            }
            found.root.scrollIntoView({block: "center", behavior: "smooth"});
            found.control.focus({preventScroll: true});
        },

        names: () => [...all.keys()],
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
