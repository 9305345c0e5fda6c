"use strict";
/* The loss as a chart: what is smoothed and what is raw, instance and prior apart. */
(function (db) {
    const LINES = [
        {key: "loss", title: "Raw", class: "dbt-raw"},
        {key: "prior", title: "Prior, smoothed", class: "dbt-prior"},
        {key: "instance", title: "Instance, smoothed", class: "dbt-instance"},
        {key: "smooth", title: "Smoothed", class: "dbt-smooth"},
    ];
    const HEIGHT = 230, LEFT = 46, BOTTOM = 24, TOP = 10, RIGHT = 10;

    const isNumber = (value) => typeof value === "number" && isFinite(value);

    /** 1, 2 or 5 times a power of ten: a step that gives at most `count` ticks. */
    function tickStep(span, count) {
        const rough = span / Math.max(1, count), power = Math.pow(10, Math.floor(Math.log10(rough)));
        return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough) || 10 * power;
    }

    function ticks(low, high, count) {
        if (!(high > low)) {
            return [low];
        }
        const step = tickStep(high - low, count), found = [];
        for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
            found.push(Number(value.toPrecision(10)));
        }
        return found;
    }

    /** The range of the values; single spikes of the raw loss do not flatten all else. */
    function rangeOf(chart, shown) {
        const calm = ["smooth", "instance", "prior"].filter((key) => shown.has(key)).flatMap((key) => chart[key] || []).filter(isNumber);
        const raw = (shown.has("loss") ? chart.loss || [] : []).filter(isNumber).sort((a, b) => a - b);
        const values = calm.concat(raw.slice(0, Math.max(1, Math.ceil(raw.length * 0.98))));
        if (!values.length) {
            return [0, 1];
        }
        const high = Math.max(...values), low = Math.min(0, Math.min(...values));
        return [low, high > low ? high * 1.05 : low + 1];
    }

    function path(steps, values, x, y) {
        let text = "", pen = "M";
        steps.forEach((step, index) => {
            if (isNumber((values || [])[index])) {
                text += pen + x(step).toFixed(1) + " " + y(values[index]).toFixed(1);
                pen = "L";
            } else {
                pen = "M";
            }
        });
        return text;
    }

    db.chart = function () {
        const shown = new Set(LINES.map((line) => line.key));
        const tip = db.h("div", {class: "dbt-tip", hidden: true});
        const holder = db.h("div", {class: "dbt-chart-holder"}, tip);
        const legend = db.h("div", {class: "dbt-legend"});
        const root = db.h("div", {class: "dbt-chart"}, legend, holder);
        let data = null, given = null, of = 0, svg = null, scale = null, key = "", cursor = null;

        function drawLegend() {
            const there = LINES.filter((line) => ((data || {})[line.key] || []).some(isNumber));
            const names = there.map((line) => line.key).join();
            if (legend.dataset.names === names) {
                return;
            }
            legend.dataset.names = names;
            db.fill(legend, there.map((line) => db.h("label", {class: "dbt-legend-entry " + line.class},
                db.h("input", {type: "checkbox", checked: shown.has(line.key), onchange: (event) => {
                    shown[event.target.checked ? "add" : "delete"](line.key);
                    draw(true);
                }}), db.h("i", {}), db.h("span", {}, db.t(line.title)))));
        }

        function draw(force) {
            const width = Math.max(240, holder.clientWidth || 0);
            const steps = (data || {}).steps || [];
            const now = JSON.stringify([width, of, steps.length, steps[steps.length - 1], (data || {}).smooth && data.smooth[data.smooth.length - 1]]);
            drawLegend();
            if (now === key && !force) {
                return;
            }
            key = now;
            if (svg) {
                svg.remove();
            }
            const last = Math.max(of || 0, steps[steps.length - 1] || 1), [low, high] = rangeOf(data || {}, shown);
            const x = (step) => LEFT + (width - LEFT - RIGHT) * step / last;
            const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (Math.min(Math.max(value, low), high) - low) / (high - low));
            scale = {x, last, width};
            cursor = db.svg("line", {class: "dbt-cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
            svg = db.svg("svg", {width, height: HEIGHT, viewBox: "0 0 " + width + " " + HEIGHT, role: "img", "aria-label": label(steps)},
                ticks(low, high, 4).map((value) => [
                    db.svg("line", {class: "dbt-gridline", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value)}),
                    db.svg("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, String(value))]),
                ticks(0, last, Math.max(2, Math.floor(width / 110))).map((step) =>
                    db.svg("text", {x: x(step), y: HEIGHT - 6, "text-anchor": step === 0 ? "start" : x(step) > width - 30 ? "end" : "middle"}, step.toLocaleString())),
                LINES.filter((line) => shown.has(line.key)).map((line) =>
                    db.svg("path", {class: "dbt-curve " + line.class, d: path(steps, (data || {})[line.key], x, y)})),
                cursor);
            holder.append(svg);
        }

        function label(steps) {
            const smooth = ((data || {}).smooth || []).filter(isNumber);
            return steps.length && smooth.length
                ? db.t("Loss by step: {value} at step {step}", {value: smooth[smooth.length - 1].toPrecision(3), step: steps[steps.length - 1]})
                : db.t("Loss by step: nothing yet");
        }

        holder.addEventListener("pointermove", (event) => {
            const steps = (data || {}).steps || [];
            if (!steps.length || !scale) {
                return;
            }
            const left = event.clientX - holder.getBoundingClientRect().left;
            const wanted = (left - LEFT) / (scale.width - LEFT - RIGHT) * scale.last;
            let best = 0;
            steps.forEach((step, index) => { best = Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? index : best; });
            const lines = LINES.filter((line) => shown.has(line.key) && isNumber((data[line.key] || [])[best]))
                .map((line) => db.t(line.title) + " " + data[line.key][best].toPrecision(3));
            db.setText(tip, [db.t("Step {n}", {n: steps[best].toLocaleString()}), ...lines].join(" · "));
            tip.hidden = false;
            const at = scale.x(steps[best]);
            tip.style.left = Math.min(Math.max(at, 90), scale.width - 90) + "px";
            cursor.setAttribute("x1", at);
            cursor.setAttribute("x2", at);
            cursor.setAttribute("visibility", "visible");
        });
        holder.addEventListener("pointerleave", () => {
            tip.hidden = true;
            if (cursor) {
                cursor.setAttribute("visibility", "hidden");
            }
        });
        if (window.ResizeObserver) {
            new ResizeObserver(() => draw(false)).observe(holder);
        }
        return {
            root,
            show(chart, steps) {
                if (chart !== given) {
                    given = chart;
                    data = chart;
                }
                of = steps;
                draw(false);
            },
        };
    };
})(window.dreamboothTrainer = window.dreamboothTrainer || {});
