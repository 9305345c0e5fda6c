"use strict";
/* Sample pictures by step, beside what the untrained model made of the same prompt and seed. */
(function (db) {
    /** Samples of one prompt and seed together: [{key, prompt, seed, byStep: [{step, url}]}] */
    function group(samples) {
        const groups = new Map();
        for (const sample of samples) {
            const index = sample.index !== undefined && sample.index !== null ? sample.index : sample.number;
            const key = [index, sample.prompt, sample.seed].join("\n");
            if (!groups.has(key)) {
                groups.set(key, {key, prompt: sample.prompt, seed: sample.seed, byStep: new Map()});
            }
            groups.get(key).byStep.set(sample.step, sample.url);
        }
        return [...groups.values()].map((found) => ({...found, byStep: [...found.byStep].map(([step, url]) => ({step, url}))
            .sort((a, b) => a.step - b.step)}));
    }

    const titleOf = (step) => (step === 0 ? db.t("Untrained") : db.t("Step {n}", {n: step.toLocaleString()}));

    function enlarge(group, sample) {
        const before = group.byStep.find((other) => other.step === 0);
        const pair = before && before !== sample ? [before, sample] : [sample];
        const dialog = db.h("dialog", {class: "dbt-dialog", "aria-label": group.prompt},
            db.h("div", {class: "dbt-pair"}, pair.map((one) => picture(one, group, null))),
            db.h("p", {}, group.prompt),
            db.button(db.t("Close"), () => dialog.close()));
        dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
        dialog.addEventListener("close", () => dialog.remove());
        db.root.append(dialog);
        dialog.showModal();
    }

    function picture(sample, group, open) {
        const image = db.h("img", {src: db.api.url(sample.url), alt: titleOf(sample.step) + ": " + group.prompt, loading: "lazy", decoding: "async"});
        return db.h("figure", {class: "dbt-sample" + (sample.step === 0 ? " dbt-untrained" : ""), "data-step": sample.step},
            open ? db.h("button", {type: "button", class: "dbt-image-button", onclick: open, "aria-label": db.t("Enlarge: {title}", {title: titleOf(sample.step)})}, image) : image,
            db.h("figcaption", {}, titleOf(sample.step)));
    }

    db.samples = {
        group,
        picture,
        enlarge,

        /** A holder that redraws only when pictures came. */
        view() {
            const root = db.h("div", {class: "dbt-samples"});
            let key = "";
            return {
                root,
                show(samples) {
                    const now = JSON.stringify(samples);
                    if (now === key) {
                        return;
                    }
                    key = now;
                    db.fill(root, group(samples).map((found) => {
                        const first = found.byStep.filter((sample) => sample.step === 0);
                        const later = found.byStep.filter((sample) => sample.step !== 0).reverse();
                        return db.h("div", {class: "dbt-sample-row"},
                            db.h("div", {class: "dbt-sample-title"}, db.h("span", {}, "“" + found.prompt + "”"),
                                found.seed === undefined || found.seed === null ? null : db.h("span", {class: "dbt-help"}, db.t("seed {n}", {n: found.seed}))),
                            db.h("div", {class: "dbt-sample-strip"}, [...first, ...later].map((sample) => picture(sample, found, () => enlarge(found, sample)))));
                    }));
                },
            };
        },

        /** First and last of each prompt, for the result. */
        pairs(samples) {
            return group(samples).map((found) => ({prompt: found.prompt, group: found,
                before: found.byStep.find((sample) => sample.step === 0), after: found.byStep[found.byStep.length - 1]}))
                .filter((pair) => pair.before && pair.after && pair.after.step !== 0);
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
