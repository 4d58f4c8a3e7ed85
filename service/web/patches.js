// Shows which patches images keep. Patches that the chosen block has removed are dimmed. A slider chooses the block.

import { el, svg } from "./dom.js";

const dimmed = (gone, columns) => gone.map((place) => `M${place % columns} ${Math.floor(place / columns)}h1v1h-1z`).join("");

function picture(image, found, stage) {
  const [rows, columns] = found.grid, kept = new Set(stage === 0 ? [] : image.kept[stage - 1]);
  const gone = stage === 0 ? [] : [...Array(found.patches).keys()].filter((place) => !kept.has(place));
  const name = `image ${image.index}: ${found.patches - gone.length} of ${found.patches} patches`;
  return svg("svg", { class: "patches", viewBox: `0 0 ${columns} ${rows}`, role: "img", "aria-label": name, "data-gone": gone.length },
    svg("title", {}, name),
    svg("image", { href: `data:image/png;base64,${image.png}`, width: columns, height: rows, preserveAspectRatio: "none" }),
    svg("path", { class: "removed", d: dimmed(gone, columns) }));
}

export function patchesView(found) {
  const last = found.blocks.length, pictures = el("div", { class: "pictures" }), said = el("p");
  const slider = el("input", { id: "stage", type: "range", min: 0, max: last, step: 1, value: last, oninput: () => draw() });
  const draw = () => {
    const stage = Number(slider.value);
    const block = stage && found.blocks[stage - 1];
    said.textContent = block ? `after ${block.block}: ${block.kept} of ${found.patches} patches` : `before the first block: ${found.patches} patches`;
    slider.setAttribute("aria-valuetext", said.textContent);
    pictures.replaceChildren(...found.images.map((image) => picture(image, found, stage)));
  };
  draw();
  return [el("h2", {}, "Which patches are kept"), el("label", {}, "Block (arrow keys)", slider), said, pictures];
}
