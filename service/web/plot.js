// Two plots: the score of every trial against its cost, with the budget and the Pareto front; and the kept sizes of blocks.

import { el, svg } from "./dom.js";

const W = 640, H = 320, LEFT = 56, RIGHT = 16, TOP = 16, BOTTOM = 44;

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values), pad = 0.05 * (high - low || Math.abs(high) || 1);
  const a = low - pad, b = high + pad;
  return { at: (value) => from + ((value - a) / (b - a)) * (to - from), ends: [low, high] };
}

export function front(trials, label) {
  const best = [];
  for (const trial of [...trials].sort((p, q) => p.costs[label] - q.costs[label] || q.score - p.score)) {
    if (!best.length || trial.score > best[best.length - 1].score) best.push(trial);
  }
  return best;
}

export function trialsPlot(trials, label, limit, delivered, onChoose) {
  if (!trials.length) return el("p", {}, "No trial has finished yet.");
  const x = scale([...trials.map((t) => t.costs[label]), limit], LEFT, W - RIGHT);
  const y = scale(trials.map((t) => t.score), H - BOTTOM, TOP);
  const place = (t) => `${x.at(t.costs[label]).toFixed(1)},${y.at(t.score).toFixed(1)}`;
  const line = x.at(limit);
  return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${trials.length} trials: score against ${label}` },
    svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }),
    svg("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: H - BOTTOM }),
    x.ends.map((v) => svg("text", { x: x.at(v), y: H - BOTTOM + 16, "text-anchor": "middle" }, v.toPrecision(3))),
    y.ends.map((v) => svg("text", { x: LEFT - 6, y: y.at(v) + 4, "text-anchor": "end" }, v.toPrecision(3))),
    svg("text", { x: (LEFT + W) / 2, y: H - 8, "text-anchor": "middle" }, label),
    svg("text", { x: 4, y: 12 }, "score"),
    svg("line", { class: "limit", x1: line, x2: line, y1: TOP, y2: H - BOTTOM }, svg("title", {}, `budget: ${limit}`)),
    svg("polyline", { class: "front", points: front(trials, label).map(place).join(" ") }),
    trials.map((t) => {
      const choose = () => onChoose(t);
      const [cx, cy] = place(t).split(",");
      const kind = t.number === delivered ? "delivered" : t.start ? "start" : "";
      const name = `trial ${t.number}: score ${t.score.toPrecision(4)}, ${label} ${t.costs[label].toPrecision(4)}`;
      return svg("circle", {
        "data-key": t.number, class: `trial ${kind}`, cx, cy, r: 6, tabindex: 0, role: "button", "aria-label": name, onclick: choose,
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } },
      }, svg("title", {}, name));
    }));
}

export function blocksPicture(blocks) {
  const axes = ["heads", "qk", "v", "neurons", "tokens"], row = 18, name = 110, wide = 100;
  const height = row * (blocks.length + 1);
  return svg("svg", { viewBox: `0 0 ${name + axes.length * (wide + 12)} ${height}`, role: "img", "aria-label": "What is kept of each block" },
    axes.map((axis, i) => svg("text", { x: name + i * (wide + 12), y: 12 }, axis)),
    blocks.map((block, j) => [
      svg("text", { x: 0, y: row * (j + 1) + 12 }, block.name),
      axes.map((axis, i) => {
        const [kept, of] = block[axis], left = name + i * (wide + 12), top = row * (j + 1) + 2;
        return [
          svg("rect", { class: "gone", x: left, y: top, width: wide, height: row - 5 }),
          svg("rect", { class: "kept", x: left, y: top, width: of ? (wide * kept) / of : 0, height: row - 5 },
            svg("title", {}, `${block.name}: ${kept} of ${of} ${axis}`)),
        ];
      }),
    ]));
}
