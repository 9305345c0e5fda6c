"use strict";
/* The result: the file, its hash, before and after; and its way into the WebUI. */
(function (db) {
    /** Every checkpoint of the run, the final one first. */
    function filesOf(state) {
        const result = state.result || {};
        const exports = (state.exports || []).slice().sort((a, b) => b.step - a.step);
        const finalPath = result.path || ((result.files || [])[0] || {}).path || "";
        const final = finalPath && {...(exports.find((one) => one.path === finalPath) || {}), path: finalPath, final: true,
            sha256: result.sha256 || ((result.files || []).find((file) => file.path === finalPath) || {}).sha256 || ""};
        const others = exports.filter((one) => one.path !== finalPath);
        return (final ? [final] : []).concat(others).map((one) => ({...one, name: one.name || db.baseName(one.path)}));
    }

    const PARTS = {unet: "UNet", text_encoder: "text encoder", text_encoder_2: "second text encoder"};
    const isSingleFile = (file) => /\.(safetensors|ckpt)$/i.test(file.path);

    function promptBox() {
        const root = window.gradioApp ? window.gradioApp() : document;
        return root.querySelector("#txt2img_prompt textarea");
    }

    function putPrompt(prompt, notice) {
        const box = promptBox();
        if (!box || !prompt) {
            return;
        }
        const before = box.value;
        write(box, prompt);
        if (before.trim() && before !== prompt) {
            const note = db.h("div", {class: "dbt-note"}, db.h("span", {}, db.t("The prompt in txt2img was replaced. It was:")), " ", db.h("q", {}, before), " ",
                db.button(db.t("Put it back"), () => { write(box, before); note.remove(); }, {class: "dbt-link"}));
            notice.append(note);
        }
    }

    function write(box, text) {
        box.value = text;
        box.dispatchEvent(new Event("input", {bubbles: true}));
        if (window.updateInput) {
            window.updateInput(box);
        }
    }

    /** Pictures of the size that the model was trained on; `pixels` is 0 where nobody knows it. */
    function putSize(pixels, notice) {
        const root = window.gradioApp ? window.gradioApp() : document, side = String(Math.round(pixels / 8) * 8);
        const boxes = ["width", "height"].map((name) => root.querySelector("#txt2img_" + name + " input[type=number]"));
        if (!pixels || boxes.some((box) => !box) || boxes.every((box) => box.value === side)) {
            return;
        }
        boxes.forEach((box) => write(box, side));
        notice.append(db.h("div", {class: "dbt-note"}, db.t("Width and height in txt2img are {n} now, as it was trained.", {n: side})));
    }

    function goToTxt2img() {
        const root = window.gradioApp ? window.gradioApp() : document;
        if (window.switch_to_txt2img) {
            window.switch_to_txt2img();
        } else {
            const first = root.querySelector("#tabs > .tab-nav button, #tabs button[role=tab]");
            if (first) {
                first.click();
            }
        }
    }

    /** Waits until the WebUI has the file in memory. What it says if it comes to something else. */
    async function untilLoaded(path, title, failures) {
        for (let tries = 0; tries < 360; tries += 1) {
            await new Promise((resolve) => setTimeout(resolve, 500));
            try {
                const found = await db.api.get("models");
                db.page.checkpoints = found.checkpoints || db.page.checkpoints;
                if (found.failures > failures) {
                    return found.failure;
                }
                if (found.checkpoints.some((model) => model.selected && model.loaded && (model.path === path || model.title === title))) {
                    return "";
                }
            } catch (error) {
                if (error.status > 0) {
                    throw error;
                }
            }
        }
        return db.t("the WebUI has not loaded it in three minutes");
    }

    async function use(run, file, button, notice) {
        const text = button.textContent;
        button.disabled = true;
        db.setText(button, db.t("Checking the file …"));
        try {
            const found = await db.api.post(db.api.run(run, "use"), {path: file.path}, {timeout: 180000});
            db.fill(notice);
            const isAdapter = found.load_with === "prompt";  // the prompt calls for it, on the checkpoint that it was made on
            const isThere = isAdapter && (!found.title || found.base === found.selected);
            db.setText(button, db.t("Loading …"));
            if (!isThere && !await load(run, file, found, notice)) {
                return;
            }
            if (isAdapter) {
                listAdapters();
            }
            putPrompt(found.prompt, notice);
            putSize(found.resolution, notice);
            if (isAdapter && !found.title) {
                withoutBase(found, notice);
                return;
            }
            const name = found.name || file.name;
            db.toast(isAdapter ? db.t("{name} is in the prompt of txt2img now, on {base}.", {name, base: found.base})
                : db.t("{name} is the WebUI's checkpoint now.", {name}));
            db.model.forget();
            goToTxt2img();
        } catch (error) {
            db.fill(notice, db.problem(error));
            db.failed(error);
        } finally {
            button.disabled = false;
            db.setText(button, text);
        }
    }

    /** Has the WebUI load what was chosen. True if it did; else it is said. */
    async function load(run, file, found, notice) {
        if (window.selectCheckpoint) {
            window.selectCheckpoint(found.title);
        } else {
            await db.api.post(db.api.run(run, "use"), {path: file.path, load: true}, {timeout: 180000});
        }
        const why = await untilLoaded(found.path || file.path, found.title, found.failures);
        if (!why) {
            return true;
        }
        const error = {text: db.t("{name} could not be loaded: {why}", {name: found.base || found.name || file.name, why}),
            remedy: db.t("The WebUI's console says more. Nothing in txt2img was changed.")};
        notice.append(db.problem(error));
        db.toast(error.text, "error");
        return false;
    }

    /** The WebUI's page lists its adapters once: a new one is there after its own button. */
    function listAdapters() {
        const refresh = (window.gradioApp ? window.gradioApp() : document).querySelector("#txt2img_lora_extra_refresh");
        if (refresh) {
            refresh.click();
        }
    }

    /** Whoever draws with another checkpoint than the adapter's is told so: nobody sees it in the picture. */
    function withoutBase(found, notice) {
        const text = db.t("{name} is in the prompt of txt2img, but it was made on {base}, which is not among the WebUI's checkpoints.",
            {name: found.name, base: found.base || "?"});
        const remedy = found.selected ? db.t("With {other}, which is in use, pictures may look wrong: put {base} into the WebUI's folder of checkpoints, then use it again.",
            {other: found.selected, base: found.base || "?"}) : db.t("Put {base} into the WebUI's folder of checkpoints, then use it again.", {base: found.base || "?"});
        notice.append(db.h("div", {class: "dbt-note dbt-warning", role: "alert"}, text, " ", remedy));
        db.toast(text, "error");
    }

    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
            db.toast(db.t("Copied."));
        } catch (error) {
            db.toast(db.t("The browser does not allow copying here."), "error");
        }
    }

    function fileRow(run, file, notice, change) {
        const button = db.button(file.final ? db.t("Use it now") : db.t("Use this one"), () => use(run, file, button, notice),
            {class: file.final ? "dbt-primary" : "dbt-small", id: file.final ? "dbt_use" : null, "data-path": file.path});
        return db.h("li", {class: "dbt-result-file" + (file.final ? " dbt-final" : "")},
            db.h("div", {class: "dbt-result-name"}, db.h("strong", {}, file.name),
                file.final || typeof file.step !== "number" ? null : db.h("span", {class: "dbt-help"}, db.t("Step {n}", {n: file.step.toLocaleString()}))),
            db.h("code", {class: "dbt-path"}, file.path),
            file.sha256 ? db.h("div", {class: "dbt-hash"}, db.h("span", {class: "dbt-help"}, "SHA-256 "), db.h("code", {title: file.sha256}, file.sha256.slice(0, 10)),
                db.button(db.t("Copy"), () => copy(file.sha256), {class: "dbt-link"}),
                change ? db.h("span", {class: "dbt-help"}, change) : null) : null,
            isSingleFile(file) ? button : db.h("span", {class: "dbt-help"}, db.t("A folder in diffusers' form: not for the WebUI.")));
    }

    function changeText(change) {
        const value = db.list(Object.entries(change || {}).filter(([, item]) => item && typeof item.relative === "number")
            .map(([name, item]) => db.t(PARTS[name] || name) + " " + percent(item.relative)));
        return value ? db.t("Weights changed by {value}.", {value}) : "";
    }

    const percent = (value) => Number((value * 100).toPrecision(2)) + " %";

    function pairs(state) {
        return db.samples.pairs(state.samples || []).slice(0, 4).map((pair) => db.h("div", {class: "dbt-pair-small"},
            db.samples.picture(pair.before, pair.group, () => db.samples.enlarge(pair.group, pair.before)),
            db.samples.picture(pair.after, pair.group, () => db.samples.enlarge(pair.group, pair.after)),
            db.h("p", {}, "“" + pair.prompt + "”")));
    }

    db.result = {
        filesOf,
        view(run) {
            const notice = db.h("div", {class: "dbt-notice", "aria-live": "polite"}), body = db.h("div", {});
            const title = db.h("h2", {});
            const root = db.h("section", {class: "dbt-card dbt-result", id: "dbt_result", hidden: true}, title, body, notice);
            let key = "";
            return {
                root,
                show(state) {
                    const files = filesOf(state);
                    const done = state.state === "finished";
                    const now = JSON.stringify([files, done, state.adapter, state.result, done ? state.samples : null]);
                    if (now === key) {
                        return;
                    }
                    key = now;
                    root.hidden = !files.length;
                    db.setText(title, done ? db.t("Result") : state.adapter ? db.t("LoRA files so far") : db.t("Checkpoints so far"));
                    root.classList.toggle("dbt-done", done);
                    const change = changeText((state.result || {}).weight_change);
                    db.fill(body, db.h("ul", {class: "dbt-result-files"}, files.map((file) => fileRow(run, file, notice, file.final ? change : ""))),
                        done ? db.h("div", {class: "dbt-pairs"}, pairs(state)) : null);
                },
            };
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
