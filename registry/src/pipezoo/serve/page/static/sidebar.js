// The list of conversations, and the drawer that it is on a narrow screen.

import { arrange, byId, element, iconButton, isEnter } from "./dom.js";

/** Shows conversations, and lets the user open, rename, export and delete them. */
export class Sidebar {
  /** @param {{open, rename, exported, remove}} actions - each takes a conversation's id; `rename` also its new title. */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversations");
    this.renaming = null; // the conversation that gets a name just now, and its row, which stays meanwhile
    byId("open-list").addEventListener("click", () => this.toggle(true));
    byId("close-list").addEventListener("click", () => this.toggle(false));
    byId("main").addEventListener("click", (event) => {
      if (this.isOpen && !event.target.closest("#open-list")) this.toggle(false);
    });
    matchMedia("(min-width: 768px)").addEventListener("change", () => this.toggle(false));
  }

  get isOpen() {
    return document.body.classList.contains("list-open");
  }

  /** Opens or closes the drawer; on a wide screen the list is always there. */
  toggle(isOpen) {
    const wasOpen = this.isOpen;
    document.body.classList.toggle("list-open", isOpen);
    byId("open-list").setAttribute("aria-expanded", String(isOpen));
    byId("scroller").inert = isOpen;
    if (isOpen) byId("close-list").focus();
    else if (wasOpen) byId("open-list").focus();
  }

  /** Puts the focus on the current conversation, or on the button for a new one. */
  focus() {
    if (getComputedStyle(byId("open-list")).display !== "none") this.toggle(true);
    (this.list.querySelector(".current .open") ?? byId("new")).focus();
  }

  show(conversations, currentId, answeringIds) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset : null;
    arrange(this.list, conversations.map((conversation) =>
      conversation.id === this.renaming?.id ? this.renaming.row : this.row(conversation, conversation.id === currentId, answeringIds)));
    if (focused?.id) this.list.querySelector(`[data-id="${CSS.escape(focused.id)}"]`)?.focus();
  }

  row({ id, title }, isCurrent, answeringIds) {
    const name = title || "Untitled";
    const isAnswering = answeringIds.has(id);
    const classes = ["conversation", isCurrent && "current", isAnswering && "answering"].filter(Boolean).join(" ");
    const open = element("button", {
      type: "button", class: "open", title: name, "data-id": id, "aria-current": isCurrent ? "true" : null,
      "aria-label": isAnswering ? `${name}, answering` : name, onclick: () => this.actions.open(id),
    }, name);
    const row = element("li", { class: classes }, open);
    if (isCurrent) {
      row.append(
        iconButton("rename", "Rename", () => this.rename(row, id, name)),
        iconButton("export", "Export as JSON", () => this.actions.exported(id)),
        iconButton("delete", "Delete", () => this.actions.remove(id)),
      );
    }
    return row;
  }

  rename(row, id, name) {
    const field = element("input", { type: "text", "aria-label": "New name", maxlength: 200 });
    let isOver = false;
    const end = (title) => {
      if (isOver) return;
      isOver = true;
      this.renaming = null;
      this.actions.rename(id, title.trim() || name);
      this.list.querySelector(".current .open")?.focus();
    };
    field.value = name;
    field.addEventListener("blur", () => end(field.value));
    field.addEventListener("keydown", (event) => {
      if (!isEnter(event) && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Escape" ? name : field.value);
    });
    this.renaming = { id, row };
    row.replaceChildren(field);
    field.select();
  }
}
