"use strict";
/* The extension's REST routes, wherever the WebUI is mounted. Errors are thrown as {status, text, where, remedy};
   status 0 means that nobody answered. */
(function (db) {
    const PREFIX = "dreambooth-trainer/v1/";
    const listeners = [];
    let away = false;

    /** The WebUI's own address: gradio's root where the page knows one (--subpath), else the page's folder. */
    function findBase() {
        const root = (window.gradio_config || {}).root;
        if (root) {
            const url = new URL(root, window.location.href);
            const path = url.pathname.replace(/\/+$/, "");
            if (url.host === window.location.host && window.location.pathname.startsWith(path)) {
                return window.location.origin + path + "/";
            }
        }
        return new URL(".", window.location.href.split(/[?#]/)[0]).href;
    }

    function setAway(now, error) {
        if (now !== away) {
            away = now;
            listeners.forEach((listener) => listener(away, error));
        }
    }

    async function call(method, path, {body, form, signal, timeout, outlives} = {}) {
        const ends = new AbortController();
        const timer = setTimeout(() => ends.abort(), timeout || 30000);
        if (signal) {
            signal.addEventListener("abort", () => ends.abort());
        }
        let answer;
        try {
            answer = await fetch(db.api.url(path), {
                method, signal: ends.signal, credentials: "same-origin", cache: "no-store", keepalive: Boolean(outlives),
                headers: body === undefined ? {} : {"Content-Type": "application/json"},
                body: form || (body === undefined ? undefined : JSON.stringify(body)),
            });
        } catch (error) {
            if (signal && signal.aborted) {
                throw {status: -1, text: ""};
            }
            setAway(true);
            throw {status: 0, text: db.t("The WebUI does not answer.")};
        } finally {
            clearTimeout(timer);
        }
        return read(answer);
    }

    async function read(answer) {
        let content = null;
        try {
            content = await answer.json();
        } catch (error) {
            content = null;  // a proxy's page in place of ours
        }
        if (answer.ok && content !== null) {
            setAway(false);
            return content;
        }
        const ours = Boolean(content && content.error);
        if ([502, 504].includes(answer.status) || ([404, 503].includes(answer.status) && !ours)) {
            setAway(true);  // a proxy, or a WebUI that is still starting and has no routes of ours yet
            throw {status: 0, text: db.t("The WebUI does not answer.")};
        }
        setAway(false);
        throw problemOf(answer.status, content);
    }

    function problemOf(status, content) {
        const error = (content || {}).error || {};
        let text = error.text || (content || {}).detail;
        if (typeof text !== "string" || !text) {
            text = db.t("The WebUI answered with error {status}.", {status});
        }
        if (status === 401 && !error.text) {
            return {status, text: db.t("You are not logged in any more."), where: "", remedy: db.t("Reload the page and log in.")};
        }
        return {status, text, where: error.where || "", remedy: error.remedy || "", more: content || {}};
    }

    db.api = {
        base: findBase(),
        get: (path, options) => call("GET", path, options),
        post: (path, body, options) => call("POST", path, {body: body || {}, ...options}),
        remove: (path) => call("DELETE", path),
        upload: (path, form, options) => call("POST", path, {form, timeout: 600000, ...options}),

        /** The address of a path below the prefix, or of an address that the server gave. */
        url(path) {
            path = String(path);
            const at = path.indexOf(PREFIX);
            return this.base + PREFIX + (at >= 0 ? path.slice(at + PREFIX.length) : path.replace(/^\/+/, ""));
        },

        run: (name, more) => "runs/" + encodeURIComponent(name) + (more ? "/" + more : ""),
        onAway: (listener) => listeners.push(listener),
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
