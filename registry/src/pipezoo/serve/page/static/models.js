// Which model and adapter answer.

import { byId, element } from "./dom.js";

/** The two lists: models, and the adapters of the chosen one. */
export class ModelChoice {
  /** @param {(model: string, adapter: string) => void} onChoice - called when the user chooses. */
  constructor(onChoice) {
    this.model = byId("model");
    this.adapter = byId("adapter");
    this.served = [];
    this.model.addEventListener("change", () => onChoice(this.model.value, ""));
    this.adapter.addEventListener("change", () => onChoice(this.model.value, this.adapter.value));
  }

  /** Takes what `/v1/models` lists: an adapter names the model under it as its parent. */
  set(served) {
    this.served = served;
  }

  /** Shows a conversation's choice, and returns it; what is not served any more is replaced by the first model. */
  show(conversation) {
    const models = this.served.filter(({ parent }) => !parent).map(({ id }) => id);
    const model = models.includes(conversation.model) ? conversation.model : (models[0] ?? "");
    const adapters = this.served.filter(({ parent }) => parent && (parent === model || !models.includes(parent))).map(({ id }) => id);
    const adapter = adapters.includes(conversation.adapter) ? conversation.adapter : "";
    const option = (value, text, chosen) => element("option", { value, selected: value === chosen }, text);
    this.model.replaceChildren(...(models.length ? models.map((id) => option(id, id, model)) : [option("", "No model", "")]));
    this.model.disabled = models.length < 2;
    this.adapter.replaceChildren(...["", ...adapters].map((id) => option(id, id || "No adapter", adapter)));
    this.adapter.hidden = !adapters.length;
    return { model, adapter };
  }
}
