"use strict";
/* Elements from code. Text always becomes text nodes, so no name, caption or log line can become markup. */
(function (db) {
    const SVG = "http://www.w3.org/2000/svg";

    function put(element, props) {
        for (const [name, value] of Object.entries(props || {})) {
            if (value === undefined || value === null || value === false) {
                continue;
            }
            if (name.startsWith("on")) {
                element.addEventListener(name.slice(2), value);
            } else if (["value", "checked", "disabled", "selected", "hidden", "open", "multiple", "readOnly"].includes(name)) {
                element[name] = value;
            } else {
                element.setAttribute(name, value === true ? "" : value);
            }
        }
    }

    function add(element, children) {
        for (const child of children.flat(Infinity)) {
            if (child !== null && child !== undefined && child !== false) {
                element.append(child);
            }
        }
        return element;
    }

    /** `db.h("p", {class: "x", onclick: f}, "text", element, …)` */
    db.h = function (tag, props, ...children) {
        const element = document.createElement(tag);
        const late = {};
        const {value, ...early} = props || {};
        put(element, early);
        add(element, children);
        if (value !== undefined) {  // a select has its value only once it has its options
            late.value = value;
        }
        put(element, late);
        return element;
    };

    db.svg = function (tag, props, ...children) {
        const element = document.createElementNS(SVG, tag);
        for (const [name, value] of Object.entries(props || {})) {
            element.setAttribute(name, value);
        }
        return add(element, children);
    };

    db.fill = function (element, ...children) {
        element.replaceChildren();
        return add(element, children);
    };

    /** Changes a text in place: the WebUI looks through the page at every element that comes or goes. */
    db.setText = function (element, text) {
        text = String(text);
        const node = element.firstChild;
        if (node && node.nodeType === Node.TEXT_NODE && !node.nextSibling) {
            if (node.nodeValue !== text) {
                node.nodeValue = text;
            }
        } else {
            element.textContent = text;
        }
    };

    db.button = function (text, onclick, props) {
        return db.h("button", {type: "button", onclick, ...props, class: "dbt-button " + ((props || {}).class || "")}, text);
    };

    /** An accordion; `count` is shown behind its title. */
    db.accordion = function (title, props, ...children) {
        const count = db.h("span", {class: "dbt-count", hidden: true});
        const element = db.h("details", {...props, class: "dbt-accordion"},
            db.h("summary", {}, db.h("span", {}, title), count), db.h("div", {class: "dbt-accordion-body"}, ...children));
        element.setCount = function (text) {
            count.hidden = !text;
            db.setText(count, text);
        };
        return element;
    };

    /** What went wrong, where, and what to do, as an element. */
    db.problem = function (error, level) {
        return db.h("div", {class: "dbt-note dbt-" + (level || "error")},
            db.h("span", {}, db.sentences(error.text)), error.remedy ? [db.gap(db.sentences(error.text)), db.h("span", {class: "dbt-remedy"}, db.sentences(error.remedy))] : null);
    };

    /** Asks in place of `button` whether it is meant. Returns how to change the question while it stands. */
    db.confirm = function (button, question, yes, act, no) {
        const asked = db.h("span", {}, question);
        const row = db.h("span", {class: "dbt-confirm", role: "alertdialog", "aria-label": question}, asked,
            db.button(yes, () => { row.replaceWith(button); act(); }, {class: "dbt-danger"}),
            db.button(no || db.t("Keep"), () => { row.replaceWith(button); button.focus(); }));
        row.addEventListener("keydown", (event) => {
            if (event.key === "Escape") {
                row.replaceWith(button);
                button.focus();
            }
        });
        button.replaceWith(row);
        row.querySelectorAll("button")[1].focus();
        return (text) => {
            db.setText(asked, text);
            row.setAttribute("aria-label", text);
        };
    };

    let toastTimer = 0;

    /** A short word at the lower edge, also read out. */
    db.toast = function (text, level) {
        const toast = db.parts.toast;
        toast.className = "dbt-toast dbt-toast-shown " + (level === "error" ? "dbt-toast-error" : "");
        db.setText(toast, text);
        clearTimeout(toastTimer);
        toastTimer = setTimeout(() => { toast.className = "dbt-toast"; }, level === "error" ? 9000 : 5000);
    };

    /** Shows an error of the server's; one of our own is also thrown on, into the browser's console. */
    db.failed = function (error) {
        if (error instanceof Error) {
            db.toast(String(error), "error");
            throw error;
        }
        db.toast(db.sentences(error.text, error.remedy), "error");
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
