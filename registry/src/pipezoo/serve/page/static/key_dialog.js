// Asks for the API key, where the server wants one.

import { byId } from "./dom.js";
import { apiKey } from "./storage.js";

/** The dialog. It says so where a key was refused. */
export class KeyDialog {
  /** @param {() => void} onKey - called when there is another key. */
  constructor(onKey) {
    this.dialog = byId("key-dialog");
    const form = byId("key-form");
    form.addEventListener("submit", () => {
      apiKey.set(form.elements.key.value.trim(), form.elements.remember.checked);
      form.elements.key.value = "";
      onKey();
    });
    this.dialog.querySelector("[data-close]").addEventListener("click", () => this.dialog.close());
  }

  open() {
    byId("key-note").textContent = apiKey.get() ? "The key that was given is not one of its keys." : "Whoever runs the server has it.";
    if (!this.dialog.open) this.dialog.showModal();
  }
}
