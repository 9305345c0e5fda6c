"use strict";
/* Files that somebody drops into the page or chooses: all of them, in groups that are sent together. */
(function (db) {
    const BATCH = 8;  // photos in one request

    /** All files of a drop, those inside dropped folders too. */
    async function droppedFiles(transfer) {
        const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
        if (!entries.some((entry) => entry.isDirectory)) {
            return [...transfer.files];
        }
        const files = [];
        async function walk(entry) {
            if (entry.isFile) {
                files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
                return;
            }
            const reader = entry.createReader();
            for (;;) {
                const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
                if (!some.length) {
                    return;
                }
                for (const one of some) {
                    await walk(one);
                }
            }
        }
        for (const entry of entries) {
            await walk(entry);
        }
        return files;
    }

    /** The files in groups for one request each; a caption travels with its picture, whose new name only then is known. */
    function requestsOf(files) {
        const stems = new Map();
        for (const file of files) {
            const stem = file.name.replace(/\.(txt|caption)$/i, "").replace(/\.(png|jpe?g|webp|bmp)$/i, "");
            stems.set(stem, [...(stems.get(stem) || []), file]);
        }
        const requests = [[]];
        for (const some of stems.values()) {
            if (requests[requests.length - 1].length + some.length > BATCH && requests[requests.length - 1].length) {
                requests.push([]);
            }
            requests[requests.length - 1].push(...some);
        }
        return requests;
    }

    db.files = {dropped: droppedFiles, requestsOf};
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
