// Keys that work everywhere on the page, and the dialog that shows them.

import { byId, element } from "./dom.js";
import { closesByBackdrop } from "./settings.js";

const FIXED = [
  ["Enter", "send"],
  ["Shift Enter", "begin a line"],
  ["↑", "edit your last message, where the field is empty"],
];

/** Whether Alt writes characters with all keys: there, in a text field, a key is what it writes. */
const HAS_OPTION = /^(Mac|iP)/.test(navigator.platform);

/**
 * Makes shortcuts work, and lists them in the dialog.
 *
 * @param {Array<{key: string, meaning: string, run: () => void}>} shortcuts - `key` is a letter, pressed with Alt, or
 *   `Escape`. By the place on the keyboard, because Alt writes other characters on some.
 */
export function bindShortcuts(shortcuts) {
  const dialog = byId("help");
  const open = () => dialog.open || dialog.showModal();
  const all = [...shortcuts, { key: "K", meaning: "show these shortcuts", run: open }];
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey) return;
    const isAlt = event.altKey && !event.getModifierState("AltGraph") && !isWriting(event);
    const found = all.find(({ key }) => (key === "Escape" ? event.key === key : isAlt && event.code === `Key${key}`));
    if (!found) return;
    event.preventDefault();
    found.run();
  });
  const named = all.map(({ key, meaning }) => [key === "Escape" ? "Esc" : `Alt ${key}`, meaning]);
  byId("keys").replaceChildren(...[...FIXED, ...named].flatMap(([keys, meaning]) => [
    element("dt", {}, ...keys.split(" ").flatMap((key) => [element("kbd", {}, key), " "])),
    element("dd", {}, meaning),
  ]));
  byId("open-help").addEventListener("click", open);
  closesByBackdrop(dialog);
}

function isWriting({ key, code, target }) {
  const writes = key === "Dead" || ([...key].length === 1 && `Key${key.toUpperCase()}` !== code);
  return HAS_OPTION && writes && target.matches("input, textarea");
}
