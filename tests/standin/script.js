// What the WebUI's own scripts offer to an extension's: written anew from how they behave.

function gradioApp() {
    return document;
}

const standin = {update: [], afterUpdate: [], loaded: [], tab: [], options: [], timer: null, isLoaded: false, shown: null};
function onUiUpdate(callback) { standin.update.push(callback); }
function onAfterUiUpdate(callback) { standin.afterUpdate.push(callback); }
function onUiLoaded(callback) { standin.loaded.push(callback); }
function onUiTabChange(callback) { standin.tab.push(callback); }
function onOptionsChanged(callback) { standin.options.push(callback); }

function get_uiCurrentTab() {
    return gradioApp().querySelector('#tabs > .tab-nav > button.selected');
}

function get_uiCurrentTabContent() {
    return gradioApp().querySelector('#tabs > .tabitem[id^=tab_]:not([style*="display: none"])');
}

function executeCallbacks(callbacks, argument) {
    for (const callback of callbacks) {
        try {
            callback(argument);
        } catch (error) {
            console.error('error running callback', callback, error);
        }
    }
}

document.addEventListener('DOMContentLoaded', function() {
    new MutationObserver(function(changes) {
        if (!standin.isLoaded && gradioApp().querySelector('#txt2img_prompt')) {
            standin.isLoaded = true;
            executeCallbacks(standin.loaded);
        }
        executeCallbacks(standin.update, changes);
        clearTimeout(standin.timer);
        standin.timer = setTimeout(() => executeCallbacks(standin.afterUpdate), 200);
        const shown = get_uiCurrentTab();
        if (shown && shown !== standin.shown) {
            standin.shown = shown;
            executeCallbacks(standin.tab);
        }
    }).observe(document, {childList: true, subtree: true});
});

// gradio sees a text only after its event
function updateInput(target) {
    target.dispatchEvent(new Event('input', {bubbles: true}));
}

function switch_to_txt2img() {
    gradioApp().querySelectorAll('#tabs > .tab-nav > button')[0].click();
    return Array.from(arguments);
}

var opts = {};
onAfterUiUpdate(function() {
    const text = gradioApp().querySelector('#settings_json textarea');
    if (!text || Object.keys(opts).length) return;
    opts = JSON.parse(text.value);
    executeCallbacks(standin.options);
});

var desiredCheckpointName = null;
function selectCheckpoint(name) {
    desiredCheckpointName = name;
    gradioApp().getElementById('change_checkpoint').click();
}

function restart_reload() {
    document.body.innerHTML = '<h1>Reloading...</h1>';
    const again = () => fetch('./internal/ping').then(
        (answer) => answer.ok ? location.reload() : setTimeout(again, 500), () => setTimeout(again, 500));
    setTimeout(again, 2000);
    return [];
}

// Texts, placeholders and titles of what is added to the page are looked up as they are. Texts inside script, style and
// textarea, numbers, and texts with an emoji stay.
(function() {
    const known = () => window.localization && Object.keys(window.localization).length > 0;
    const emoji = /[\p{Extended_Pictographic}\u{1F3FB}-\u{1F3FF}]/u;

    function translateText(node) {
        const text = node.textContent.trim();
        const parent = node.parentElement;
        if (!text || !parent || ['SCRIPT', 'STYLE', 'TEXTAREA'].includes(parent.nodeName)) return;
        if (/^[.\d]+$/.test(text) || emoji.test(text)) return;
        if (window.localization[text] !== undefined) node.textContent = window.localization[text];
    }

    function translate(node) {
        if (node.nodeType === Node.TEXT_NODE) return translateText(node);
        for (const attribute of ['title', 'placeholder']) {
            const text = node[attribute];
            if (text && window.localization[text] !== undefined) node[attribute] = window.localization[text];
        }
        const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
        const texts = [];
        while (walker.nextNode()) texts.push(walker.currentNode);
        texts.forEach(translateText);
    }

    document.addEventListener('DOMContentLoaded', function() {
        if (!known()) return;
        onUiUpdate((changes) => changes.forEach((change) => change.addedNodes.forEach(translate)));
        translate(document.body);
    });
})();
