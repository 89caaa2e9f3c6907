// The dialog of settings: system prompt, sampling, API key. What is not set is not sent, and the model decides.

import { byId } from "./dom.js";
import { apiKey } from "./storage.js";

const LABELS = {
  temperature: "temperature", max_completion_tokens: "most tokens", top_p: "top p", top_k: "top k", min_p: "min p", seed: "seed",
  repetition_penalty: "repetition penalty", frequency_penalty: "frequency penalty", stop: "stop texts",
};

/** Shows the settings of a conversation, and changes them as the user types. */
export class Settings {
  /** @param {() => void} onChange - called after each change. */
  constructor(onChange) {
    this.dialog = byId("settings");
    this.form = this.dialog.querySelector("form");
    this.onChange = onChange;
    this.form.addEventListener("input", ({ target }) => this.take(target));
    byId("defaults").addEventListener("click", () => this.empty());
    closesByBackdrop(this.dialog);
  }

  /** Opens the dialog for a conversation. */
  open(conversation, hasKey) {
    this.conversation = conversation;
    const { system, sampling } = conversation;
    const fields = this.form.elements;
    fields.system.value = system;
    for (const name of Object.keys(LABELS)) {
      fields[name].value = name === "stop" ? (sampling.stop ?? []).join("\n") : (sampling[name] ?? "");
    }
    byId("key-fields").hidden = !hasKey;
    fields.key.value = apiKey.get();
    fields.remember.checked = apiKey.isRemembered();
    this.dialog.showModal();
  }

  take(field) {
    if (!field.validity.valid) return; // the browser says why
    if (field.name === "key" || field.name === "remember") {
      if (!this.form.elements.key.validity.valid) return;
      apiKey.set(this.form.elements.key.value.trim(), this.form.elements.remember.checked);
    } else if (field.name === "system") {
      this.conversation.system = field.value.trim();
    } else {
      const { [field.name]: _, ...others } = this.conversation.sampling;
      const value = valueOf(field);
      this.conversation.sampling = value === null ? others : { ...others, [field.name]: value };
    }
    this.onChange();
  }

  empty() {
    this.conversation.system = "";
    this.conversation.sampling = {};
    for (const name of ["system", ...Object.keys(LABELS)]) this.form.elements[name].value = "";
    this.onChange();
  }
}

/** Returns what of a conversation's settings is not the model's, as a text. */
export function differing({ system, sampling }) {
  const names = [system && "system prompt", ...Object.keys(sampling).map((name) => LABELS[name] ?? name)].filter(Boolean);
  return names.length ? `Set: ${names.join(", ")}.` : "";
}

/** Lets a click beside a dialog close it. */
export function closesByBackdrop(dialog) {
  dialog.addEventListener("click", ({ target, clientX, clientY }) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const isBeside = clientX < left || clientX > right || clientY < top || clientY > bottom;
    if (target === dialog && isBeside) dialog.close();
  });
}

function valueOf(field) {
  if (field.value.trim() === "") return null;
  if (field.name !== "stop") return Number(field.value);
  return field.value.split("\n").filter((line) => line !== "");
}
