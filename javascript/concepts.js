"use strict";
/* Concepts: photos, what a friend would say of them, prompts. Any number of them. */
(function (db) {
    let list = null, cards = [], number = 0;

    const concepts = () => db.form.value.concepts;
    const defaultOf = (name) => (db.page.concept_fields.find((entry) => entry.name === name) || {}).default;

    function setConcept(index, values) {
        const all = db.form.copy().concepts;
        Object.assign(all[index], values);
        for (const name of Object.keys(all[index])) {
            if (all[index][name] === null || JSON.stringify(all[index][name]) === JSON.stringify(defaultOf(name))) {
                delete all[index][name];
            }
        }
        db.form.set("concepts", all);
    }

    function bindingOf(index, entry) {
        return {
            where: "concepts[" + index + "]." + entry.name,
            id: "dbt_c" + index + "_" + entry.name,
            get: () => { const value = (concepts()[index] || {})[entry.name]; return value === undefined ? entry.default : value; },
            set: (value) => setConcept(index, {[entry.name]: value}),
            plain: true,
        };
    }

    function words(card) {
        number += 1;
        const listId = "dbt_kinds_" + number;
        const word = db.h("input", {type: "text", id: "dbt_c" + card.index + "_word", spellcheck: "false", autocapitalize: "off"});
        const kind = db.h("input", {type: "text", id: "dbt_c" + card.index + "_kind", list: listId, autocapitalize: "off"});
        const tokens = db.h("div", {class: "dbt-tokens", "aria-live": "polite"});
        const change = (values) => { setConcept(card.index, values); };
        word.addEventListener("input", () => {
            const text = word.value.trim().replace(/\s+/g, "-");
            if (text && db.words.parse(concepts()[card.index])) {
                change(db.words.setWord(concepts()[card.index], text));
            }
        });
        kind.addEventListener("input", () => {
            if (kind.value.trim() && db.words.parse(concepts()[card.index])) {
                change(db.words.setKind(concepts()[card.index], kind.value.trim().replace(/\s+/g, " ")));
            }
        });
        const another = db.button("↻", () => change(db.words.setWord(concepts()[card.index], db.words.unused(word.value))),
            {class: "dbt-square", title: db.t("Another rare word"), "aria-label": db.t("Another rare word")});
        const root = db.h("div", {class: "dbt-words"},
            db.h("div", {class: "dbt-field"}, db.h("label", {for: kind.id}, db.t("The photos show a")), db.h("div", {class: "dbt-control"}, kind),
                db.h("datalist", {id: listId}, db.words.kinds().map((name) => db.h("option", {value: name}))),
                db.h("div", {class: "dbt-help"}, db.t("In English: person, dog, backpack, style …"))),
            db.h("div", {class: "dbt-field"}, db.h("label", {for: word.id}, db.t("Its own word")), db.h("div", {class: "dbt-control"}, word, another),
                db.h("div", {class: "dbt-help"}, db.t("A rare word that will mean exactly yours.")), tokens));
        return {root, word, kind, tokens};
    }

    function refreshWords(card) {
        const parts = db.words.parse(concepts()[card.index] || {});
        card.words.root.hidden = !parts;
        if (!parts) {
            return;
        }
        for (const [input, text] of [[card.words.word, parts.word], [card.words.kind, parts.kind]]) {
            if (document.activeElement !== input && input.value !== text) {
                input.value = text;
            }
        }
    }

    function dropZone(card) {
        const input = db.h("input", {type: "file", multiple: true, accept: "image/*,.txt,.caption", class: "dbt-file", id: "dbt_c" + card.index + "_files",
            "aria-label": db.t("Choose photos")});
        input.addEventListener("change", () => { upload(card, [...input.files]); input.value = ""; });
        const zone = db.h("div", {class: "dbt-drop", id: "dbt_c" + card.index + "_drop"},
            db.h("div", {class: "dbt-drop-text"}, db.h("strong", {}, db.t("Drop photos here")), db.h("span", {}, db.t("or")),
                db.button(db.t("Choose photos"), () => input.click(), {class: "dbt-small"})), input);
        let depth = 0;
        const over = (inside) => zone.classList.toggle("dbt-over", inside);
        const take = (event) => { event.preventDefault(); event.stopPropagation(); };
        zone.addEventListener("dragenter", (event) => { take(event); depth += 1; over(true); });
        zone.addEventListener("dragover", (event) => { take(event); event.dataTransfer.dropEffect = "copy"; });
        zone.addEventListener("dragleave", (event) => { take(event); depth -= 1; over(depth > 0); });
        zone.addEventListener("drop", async (event) => {
            take(event);
            depth = 0;
            over(false);
            upload(card, await db.files.dropped(event.dataTransfer));
        });
        return zone;
    }

    /** The name of a set of photos that was dropped into the page, "" for any other folder. */
    function setName(path) {
        const place = (db.page.places || {}).photos;
        return place && path.startsWith(place) && path.length > place.length ? db.baseName(path) : "";
    }

    /** Takes photos into the concept. It has one folder: where somebody named one with photos, they say what is meant. */
    async function upload(card, files) {
        if (card.busy || card.asking) {
            card.waiting.push(...files);  // dropped while others are on their way, or asked about
            return;
        }
        if (!files.length) {
            return;
        }
        const path = (concepts()[card.index] || {}).instance_data_dir || "";
        if (path && !setName(path)) {
            card.asking = true;
            await look(card);
            if ((card.look || {}).count) {
                askAboutFolder(card, files, path);
                return;
            }
            card.asking = false;
        }
        await send(card, files, setName(path));
    }

    function askAboutFolder(card, files, path) {
        const question = db.t("This concept has the folder {path}, and can have only one. Which photos are meant?", {path});
        const answer = (act) => () => { card.asking = false; say(card, ""); act(files.concat(card.waiting.splice(0))); };
        const together = db.button(db.count(card.look.count, "Take a copy of its {n} photo too", "Take copies of its {n} photos too"),
            answer((all) => copyAndSend(card, all, path)), {class: "dbt-small", "data-answer": "both"});
        db.fill(card.status, db.h("div", {class: "dbt-note dbt-warning", role: "alertdialog", "aria-label": question},
            db.h("p", {}, question), db.h("div", {class: "dbt-buttons"}, together,
                db.button(db.t("Only the dropped ones"), answer((all) => send(card, all, "")), {class: "dbt-small", "data-answer": "dropped"}),
                db.button(db.t("Keep the folder"), answer(() => null), {class: "dbt-small", "data-answer": "keep"}))));
        together.focus();
    }

    /** Copies of the named folder's photos in a new set, and the dropped ones with them. The folder stays as it is. */
    async function copyAndSend(card, files, path) {
        card.busy = true;
        say(card, db.t("Copying photos …"));
        try {
            const copied = await db.api.post("photos/copy", {path}, {timeout: 600000});
            await send(card, files, copied.folder, copied.refused || []);
        } catch (error) {
            card.busy = false;
            say(card, "");
            db.failed(error);
        }
    }

    /** Sends photos in small requests, so that progress can be seen and one bad file costs no other. */
    async function send(card, files, set, refused = []) {
        let folder = set, path = "";
        card.busy = true;
        card.root.setAttribute("aria-busy", "true");
        try {
            let sent = 0;
            for (const some of db.files.requestsOf(files)) {
                sent += some.length;
                say(card, db.t("Sending photos: {n} of {all}", {n: sent, all: files.length}));
                const form = new FormData();
                form.append("folder", folder);
                some.forEach((file) => form.append("files", file, file.name));
                const answer = await db.api.upload("photos", form);
                folder = answer.folder;
                path = answer.path;
                refused.push(...(answer.refused || []));
            }
            setConcept(card.index, {instance_data_dir: path});
        } catch (error) {
            refused.push({name: "", why: [error.text, error.remedy].filter(Boolean).join(" ")});
            if (path) {
                setConcept(card.index, {instance_data_dir: path});
            }
        }
        card.busy = false;
        card.root.removeAttribute("aria-busy");
        const of = folderOf(card);  // with another folder they mean nothing
        (cards[card.index] || card).refused = refused.map((item) => ({...item, of}));  // the form may have been drawn anew meanwhile
        say(card, "");
        card.looked = null;
        await look(card);
        db.fields.refresh();
        db.plan.soon();
        await upload(card, card.waiting.splice(0));
    }

    const folderOf = (card) => (concepts()[card.index] || {}).instance_data_dir || "";

    function say(card, text) {
        db.setText(card.status, text);
    }

    /** Asks the server what is in the concept's folder. */
    async function look(card) {
        const path = folderOf(card);
        if (card.looked === path) {
            drawPhotos(card);
            return;
        }
        card.looked = path;
        card.look = (card.look || {}).path === path ? card.look : null;  // what is looked at anew stays in sight meanwhile
        if (path) {
            try {
                const found = await db.api.post("photos/look", {path});
                card.look = card.looked === path ? found : card.look;
            } catch (error) {
                card.looked = error.status > 0 ? path : null;
                card.look = {path, count: 0, files: [], failed: true, problems: error.status > 0 ? [{text: error.text, remedy: error.remedy}] : []};
            }
        }
        drawPhotos(card);
    }

    function thumbnail(card, file, marked) {
        const url = String(file.thumbnail || "").includes("/") ? file.thumbnail : "photos/thumbnail?id=" + encodeURIComponent(file.thumbnail);
        const called = file.called || file.name;
        const about = [called, file.width ? file.width + " × " + file.height : "", file.caption].filter(Boolean).join("\n");
        const own = card.look && (card.look.own === undefined ? setName(card.look.path) : card.look.own);
        return db.h("figure", {class: "dbt-thumb" + (marked ? " dbt-marked" : ""), title: about, "data-name": file.name},
            db.h("img", {src: db.api.url(url), alt: file.caption || called, loading: "lazy", decoding: "async", width: 96, height: 96}),
            file.caption ? db.h("figcaption", {}, file.caption) : null,
            own ? db.button("✕", () => removePhoto(card, file.name), {class: "dbt-thumb-remove", title: db.t("Remove this photo"),
                "aria-label": db.t("Remove {name}", {name: called})}) : null);
    }

    async function removePhoto(card, name) {
        try {
            await db.api.post("photos/remove", {path: card.look.path, name});
            card.looked = null;
            await look(card);
            db.plan.soon();
        } catch (error) {
            db.failed(error);
        }
    }

    const plannedFor = (card) => (db.plan.concepts()[card.index] || {}).advice || [];
    /** Whether a remark is about the photos; the others are about the words. */
    const isOfPhotos = (item) => (item.files || []).length > 0 || /^[\d.,]+ photos?\b/.test(item.text);

    /** What there is to say of the photos: from looking at them, and from the plan. */
    function adviceOf(card) {
        const planned = plannedFor(card).filter(isOfPhotos), look = card.look || {};
        // where the folder cannot be looked into the plan says so beside it, and it is not said twice
        const isSaid = look.failed && db.plan.isWrong("concepts[" + card.index + "].instance_data_dir");
        const looked = (isSaid ? [] : look.problems || []).map((problem) => (typeof problem === "string" ? {text: problem} : problem));
        const refused = (card.refused || []).filter((item) => item.of === folderOf(card)).map((item) => ({level: "error", text: (item.name ? item.name + ": " : "") + item.why}));
        return [...refused, ...looked, ...withoutCaptions(look.files || []), ...folded(planned)];
    }

    /** The preset for styles counts on captions: what a picture shows is not its style. */
    function withoutCaptions(files) {
        const isStyle = (db.presets.current() || {}).name === "style";
        return isStyle && files.length && files.every((file) => !file.caption) ? [{level: "warning", text: db.t(
            "No picture has a caption: a style is learned best with a .txt of the same name beside each, and [filewords] in the instance prompt.")}] : [];
    }

    const ALIKE = / are nearly the same: /;

    /** Many groups of photos that are alike are one remark, with the groups inside. */
    function folded(advice) {
        const alike = advice.filter((item) => ALIKE.test(item.text));
        if (alike.length < 3) {
            return advice;
        }
        const text = db.t("{n} groups of photos are nearly the same: the model may learn the photos instead of the subject.", {n: alike.length});
        return [...advice.filter((item) => !alike.includes(item)),
            {level: "warning", text, groups: alike.map((item) => item.files), files: alike.flatMap((item) => item.files)}];
    }

    function drawPhotos(card) {
        const files = (card.look || {}).files || [];
        const advice = adviceOf(card);
        const marked = new Set(advice.flatMap((item) => (item.files || []).map(db.baseName)));
        const key = JSON.stringify([files, [...marked], advice]);
        if (key === card.drawn) {
            return;
        }
        card.drawn = key;
        const count = (card.look || {}).count || files.length;
        db.setText(card.count, count ? db.count(count, "{n} photo", "{n} photos") : "");
        card.zone.classList.toggle("dbt-drop-small", files.length > 0);
        db.fill(card.thumbs, files.map((file) => thumbnail(card, file, marked.has(file.name))),
            count > files.length ? db.h("span", {class: "dbt-more"}, db.t("and {n} more", {n: count - files.length})) : null);
        const called = new Map(files.map((file) => [file.name, file.called || file.name]));
        db.fill(card.advice, advice.map((item) => remark(item, called)));
    }

    /** `called` has the names that the photos' owner gave them, by those they are kept under. */
    function remark(item, called = new Map()) {
        const nameOf = (name) => called.get(name) || db.baseName(name);
        if (item.groups) {
            return db.h("li", {class: "dbt-note dbt-" + item.level}, item.text, " ", db.h("details", {}, db.h("summary", {}, db.t("Show")),
                db.h("ul", {}, item.groups.map((group) => db.h("li", {class: "dbt-files"}, group.map(nameOf).join(", "))))));
        }
        const files = (item.files || []).map(nameOf);
        return db.h("li", {class: "dbt-note dbt-" + (item.level || "warning")}, db.h("span", {}, db.sentences(item.text)),
            files.length ? db.h("span", {class: "dbt-files"}, files.slice(0, 6).join(", ") + (files.length > 6 ? " …" : "")) : null,
            item.remedy ? [db.gap(db.sentences(item.text)), db.h("span", {class: "dbt-remedy"}, db.sentences(item.remedy))] : null);
    }

    function drawTokens(card) {
        const planned = db.plan.concepts()[card.index] || {};
        const tokens = card.words.tokens, said = plannedFor(card).filter((item) => !isOfPhotos(item));
        if (JSON.stringify(said) !== card.said) {
            card.said = JSON.stringify(said);
            db.fill(card.promptAdvice, said.map((item) => remark(item)));
        }
        if (!planned.rare_token_count || String(planned.rare_token).toLowerCase() !== card.words.word.value.toLowerCase()) {
            db.setText(tokens, "");
            return;
        }
        db.setText(tokens, db.count(planned.rare_token_count, "{n} token", "{n} tokens"));
    }

    function makeCard(index) {
        const card = {index, looked: null, look: null, refused: [], waiting: [], drawn: "", said: "", busy: false};
        const entries = new Map(db.page.concept_fields.map((entry) => [entry.name, entry]));
        const field = (name) => db.fields.make(entries.get(name), bindingOf(index, entries.get(name))).root;
        card.words = words(card);
        card.zone = dropZone(card);
        card.count = db.h("span", {class: "dbt-photo-count"});
        card.status = db.h("div", {class: "dbt-status", "aria-live": "polite"});
        card.thumbs = db.h("div", {class: "dbt-thumbs"});
        card.advice = db.h("ul", {class: "dbt-advice", "aria-live": "polite"});
        card.promptAdvice = db.h("ul", {class: "dbt-advice dbt-words-advice", "aria-live": "polite"});
        card.title = db.h("h3", {}, db.t("Concept {n}", {n: index + 1}));
        const remove = db.button(db.t("Remove"), () => db.confirm(remove, db.t("Remove this concept? Its photos stay where they are."), db.t("Remove"),
            () => removeConcept(index)), {class: "dbt-small dbt-quiet"});
        card.remove = remove;
        const folder = field("instance_data_dir");
        folder.classList.toggle("dbt-error-only", (db.page.flags || {}).paths_may_be_chosen === false);
        const inSight = ["instance_prompt", "class_prompt"];
        const others = db.page.concept_fields.map((entry) => entry.name).filter((name) => !inSight.includes(name) && name !== "instance_data_dir");
        card.more = db.accordion(db.t("More about this concept"), {}, db.h("div", {class: "dbt-grid"}, others.map(field)));
        card.others = others;
        card.root = db.h("section", {class: "dbt-concept", "data-concept": index},
            db.h("div", {class: "dbt-concept-head"}, card.title, card.count, db.h("span", {class: "dbt-space"}), remove),
            card.zone, card.status, card.thumbs, card.advice, folder, card.words.root, db.h("div", {class: "dbt-grid dbt-two"}, inSight.map(field)), card.promptAdvice, card.more);
        return card;
    }

    function removeConcept(index) {
        const all = db.form.copy().concepts;
        all.splice(index, 1);
        db.form.set("concepts", all);
        draw();
    }

    function draw() {
        const kept = new Map(cards.filter((card) => card.look).map((card) => [card.look.path, card.look]));
        const refused = new Map(cards.map((card) => [card.looked || "#" + card.index, card.refused]));
        db.fields.forget("concepts[");
        cards = concepts().map((_, index) => makeCard(index));
        for (const card of cards) {
            const path = concepts()[card.index].instance_data_dir;
            card.refused = refused.get(path || "#" + card.index) || [];
            if (kept.has(path)) {
                card.look = kept.get(path);
                card.looked = path;
            }
        }
        db.fill(list, cards.map((card) => card.root));
        refresh();
    }

    let lookTimer = 0;

    function refresh() {
        for (const card of cards) {
            refreshWords(card);
            drawTokens(card);
            drawPhotos(card);
            const one = cards.length === 1;
            card.title.hidden = one;
            card.remove.hidden = one;
            const changed = card.others.filter((name) => name in concepts()[card.index]).length;
            card.more.setCount(changed ? db.t("{n} changed", {n: changed}) : "");
        }
        clearTimeout(lookTimer);  // a path is being typed
        lookTimer = setTimeout(() => cards.filter((card) => !card.busy).forEach(look), 500);
    }

    db.concepts = {
        section() {
            list = db.h("div", {class: "dbt-concept-list"});
            const more = db.button(db.t("Add another concept"), () => {
                db.form.set("concepts", [...db.form.copy().concepts, db.presets.concept()]);
                draw();
                cards[cards.length - 1].root.scrollIntoView({block: "start", behavior: "smooth"});
            }, {class: "dbt-small", id: "dbt_add_concept"});
            return [list, more];
        },
        draw,
        refresh() {
            if (cards.length !== concepts().length) {
                draw();
            } else {
                refresh();
            }
        },
        /** After a plan: its advice belongs beside the photos. */
        planned() {
            cards.forEach((card) => { drawTokens(card); drawPhotos(card); });
        },
        busy: () => cards.some((card) => card.busy || (card.waiting.length && !card.asking)),

        /** The folders may have become others since they were looked at. */
        lookAgain() {
            cards.filter((card) => !card.busy).forEach((card) => {
                card.looked = null;
                look(card);
            });
        },
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
