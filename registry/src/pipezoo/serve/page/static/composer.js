// The field that messages are written in.

import { byId, isEnter } from "./dom.js";

/** Sends what is written, and has the button that stops an answer. */
export class Composer {
  /** @param {{send: (text: string) => void, stop: () => void, editLast: () => void}} actions - what keys and buttons do. */
  constructor(actions) {
    this.field = byId("text");
    this.actions = actions;
    this.isAnswering = false;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => {
      actions.stop();
      this.field.focus();
    });
    this.field.addEventListener("input", () => this.show());
    this.field.addEventListener("keydown", (event) => this.press(event));
    this.show();
  }

  /** Shows whether an answer is coming; the next message can be written meanwhile. */
  show(isAnswering = this.isAnswering) {
    this.isAnswering = isAnswering;
    byId("send").hidden = isAnswering;
    byId("stop").hidden = !isAnswering;
    byId("send").disabled = !this.field.value.trim();
    this.field.style.height = "auto"; // browsers without field-sizing
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  focus() {
    this.field.focus();
  }

  press(event) {
    if (isEnter(event) && !event.shiftKey) this.send();
    else if (event.key === "ArrowUp" && !this.field.value) this.actions.editLast();
    else return;
    event.preventDefault();
  }

  send() {
    const text = this.field.value.trim();
    if (!text || this.isAnswering) return;
    this.field.value = "";
    this.show();
    this.actions.send(text);
  }
}
