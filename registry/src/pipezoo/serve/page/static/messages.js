// The messages of a conversation on the page.

import { copy } from "./clipboard.js";
import { arrange, element, icon, iconButton, isEnter } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const ENDS = { length: "stopped at the most tokens", stopped: "stopped", failed: "broken off", content_filter: "stopped by a filter" };

/** Shows messages in a list, and lets the user change them. */
export class MessageList {
  /**
   * @param {HTMLElement} target - gets the messages.
   * @param {{edit: (index: number, text: string) => void, regenerate: () => void}} actions - what buttons do.
   */
  constructor(target, actions) {
    this.target = target;
    this.actions = actions;
    this.views = [];
    this.known = new WeakMap(); // the views of messages, which keep what is open in them
  }

  /** Shows messages; `isWaiting` adds a sign that an answer is on its way. */
  show(messages, { isAnswering = false, isWaiting = false } = {}) {
    this.views = messages.map((message, index) => this.view(message, index));
    const waiting = isWaiting ? element("li", { class: "message assistant" }, element("span", { class: "waiting" })) : null;
    arrange(this.target, [...this.views.map(({ node }) => node), ...(waiting ? [waiting] : [])]);
    messages.forEach((message, index) => {
      const isLast = index === messages.length - 1;
      this.views[index].show(message, { isLast, isAnswering: isLast && isAnswering && !isWaiting });
    });
  }

  /** Shows the last message as it is now. */
  update(message, isAnswering) {
    this.views.at(-1)?.show(message, { isLast: true, isAnswering });
  }

  /** Opens the user's last message for editing. */
  editLast() {
    this.views.findLast(({ edit }) => edit)?.edit();
  }

  view(message, index) {
    if (!this.known.has(message)) {
      this.known.set(message, message.role === "user" ? this.userView(message, index) : this.answerView(message));
    }
    return this.known.get(message);
  }

  userView(message, index) {
    const body = element("div", { class: "body" }, message.content);
    const edit = () => this.openEditor(node, message, index);
    const node = element("li", { class: "message user" }, element("span", { class: "unseen" }, "You"), body,
      element("div", { class: "under" }, copyButton(() => message.content), iconButton("rename", "Edit and send again", edit)));
    return { node, edit, show: () => {} };
  }

  answerView(message) {
    const thoughts = element("div");
    const details = element("details", { class: "thoughts", hidden: true }, element("summary", {}, "Thoughts"), thoughts);
    const body = element("div", { class: "body" });
    const about = element("span", { class: "note" });
    const copying = copyButton(() => message.content);
    const again = iconButton("again", "Answer again", () => this.actions.regenerate());
    const under = element("div", { class: "under" }, about, copying, again);
    const node = element("li", { class: "message assistant" }, element("span", { class: "unseen" }, "Answer"), details, body, under);
    const markdown = new MarkdownView(body);
    const show = (now, { isLast, isAnswering }) => {
      markdown.show(now.content);
      details.hidden = !now.reasoning;
      thoughts.textContent = now.reasoning ?? "";
      about.textContent = isAnswering ? "" : told(now);
      copying.hidden = isAnswering;
      again.hidden = isAnswering || !isLast;
    };
    return { node, show };
  }

  openEditor(node, message, index) {
    const open = node.querySelector("textarea");
    if (open) return open.focus();
    const field = element("textarea", { rows: Math.min(12, message.content.split("\n").length + 1), "aria-label": "Edit the message" });
    field.value = message.content;
    const close = () => {
      form.replaceWith(...hidden);
      node.querySelector(".under button:last-child").focus();
    };
    const send = (event) => {
      event.preventDefault();
      if (field.value.trim()) this.actions.edit(index, field.value.trim());
    };
    const form = element("form", { onsubmit: send }, field, element("div", { class: "buttons" },
      element("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
      element("button", { type: "submit", class: "strong" }, "Send")));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (isEnter(event) && event.target === field && !event.shiftKey) send(event);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const hidden = [...node.children];
    node.replaceChildren(form);
    return field.focus();
  }
}

function copyButton(text) {
  const button = iconButton("copy", "Copy", async () => {
    const isCopied = await copy(text());
    button.replaceChildren(icon(isCopied ? "done" : "close"));
    button.setAttribute("aria-label", isCopied ? "Copied" : "Not copied");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", "Copy");
    }, 2000);
  });
  return button;
}

/** Returns what is worth to know of an answer: why it ended early, tokens, speed. */
export function told({ end, usage, timing }) {
  const parts = [
    ENDS[end],
    usage && `${usage.answer} ${usage.answer === 1 ? "token" : "tokens"}`,
    timing?.rate && `${timing.rate.toFixed(1)} tokens/s`,
    usage && `prompt ${usage.prompt}`,
    timing?.first != null && `first after ${timing.first.toFixed(2)} s`,
  ];
  return parts.filter(Boolean).join(" · ");
}
