// The page: one conversation in view, answers that may come in several, and what the buttons and keys do.

import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { byId, element } from "./dom.js";
import { KeyDialog } from "./key_dialog.js";
import { MessageList, told } from "./messages.js";
import { ModelChoice } from "./models.js";
import { Scroll } from "./scroll.js";
import { models, ServerError } from "./server.js";
import { closesByBackdrop, differing, Settings } from "./settings.js";
import { bindShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { apiKey, Conversations } from "./storage.js";
import { bindThemeSwitch } from "./theme_switch.js";

class Page {
  constructor() {
    this.conversations = new Conversations();
    this.answerings = new Map(); // by the conversation's id, while they come
    this.failures = new Map(); // likewise: what to say, and what to do about it
    this.asksForKey = Boolean(apiKey.get());
    this.current = this.conversations.create();
    this.messages = new MessageList(byId("messages"), {
      edit: (index, text) => this.edit(index, text),
      regenerate: () => this.regenerate(),
    });
    this.composer = new Composer({
      send: (text) => this.send(text),
      stop: () => this.stop(),
      editLast: () => this.messages.editLast(),
    });
    this.sidebar = new Sidebar({
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      exported: (id) => this.exported(id),
      remove: (id) => this.remove(id),
    });
    this.scroll = new Scroll(byId("scroller"), byId("to-end"));
    this.choice = new ModelChoice((model, adapter) => this.choose({ model, adapter }));
    this.settings = new Settings(() => this.choose({}));
    this.keyDialog = new KeyDialog(() => this.load());
    this.bind();
    this.show();
    this.load();
  }

  bind() {
    const openSettings = () => this.settings.open(this.current, this.asksForKey);
    byId("new").addEventListener("click", () => this.begin());
    byId("open-settings").addEventListener("click", openSettings);
    byId("settings").addEventListener("close", () => this.served || this.load());
    bindThemeSwitch(byId("theme"));
    closesByBackdrop(byId("delete-dialog"));
    bindShortcuts([
      { key: "Escape", meaning: "stop the answer", run: () => (this.sidebar.isOpen ? this.sidebar.toggle(false) : this.stop()) },
      { key: "N", meaning: "new conversation", run: () => this.begin() },
      { key: "R", meaning: "answer again", run: () => this.regenerate() },
      { key: "L", meaning: "go to the conversations", run: () => this.sidebar.focus() },
      { key: "M", meaning: "go to the message field", run: () => this.composer.focus() },
      { key: "S", meaning: "settings", run: openSettings },
    ]);
    this.conversations.onElsewhere((id) => {
      if (id === this.current.id && !this.answerings.has(id)) this.current = this.conversations.get(id) ?? this.current;
      this.show();
    });
  }

  /** Asks which models there are. */
  async load() {
    this.failures.delete("models");
    try {
      this.choice.set(await models(apiKey.get()));
      this.served = true;
    } catch (error) {
      this.fail("models", error, () => this.load());
    }
    this.show();
  }

  /** Shows everything anew. */
  show() {
    const { current } = this;
    const answering = this.answerings.get(current.id);
    const { model, adapter } = this.choice.show(current);
    const isWaiting = Boolean(answering) && !current.messages.includes(answering.message);
    this.messages.show(current.messages, { isAnswering: Boolean(answering), isWaiting });
    byId("empty").hidden = current.messages.length > 0;
    byId("empty-title").textContent = model ? "Ask something" : "No model yet";
    byId("empty-note").textContent = adapter || model;
    byId("in-force").textContent = differing(current);
    document.title = current.title ? `${current.title} · pipezoo` : "pipezoo";
    this.composer.show(Boolean(answering));
    this.showUnstored();
    this.showList();
    this.showFailure();
    this.scroll.follow();
  }

  /** Says so where the conversation in view could not be stored. */
  showUnstored() {
    byId("unstored").hidden = !this.conversations.isUnstored(this.current.id);
  }

  showList() {
    this.sidebar.show(this.conversations.all(), this.current.id, new Set(this.answerings.keys()));
  }

  showFailure() {
    const failure = this.failures.get(this.current.id) ?? this.failures.get("models") ?? this.unanswered();
    const again = failure && element("button", { type: "button", class: "quiet", onclick: failure.again }, failure.name ?? "Try again");
    byId("failure").replaceChildren(...(failure ? [element("div", { class: failure.text ? "failure" : "buttons" }, failure.text, again)] : []));
  }

  /** A question may have no answer, because the page was left meanwhile. */
  unanswered() {
    const isOpen = this.current.messages.at(-1)?.role === "user" && !this.answerings.has(this.current.id);
    return isOpen ? { text: "", name: "Answer", again: () => this.answer() } : null;
  }

  begin() {
    this.current = this.conversations.create();
    if (this.sidebar.isOpen) this.sidebar.toggle(false);
    this.show();
    this.composer.focus();
  }

  open(id) {
    this.current = this.answerings.get(id)?.conversation ?? this.conversations.get(id) ?? this.current;
    if (this.sidebar.isOpen) this.sidebar.toggle(false);
    this.scroll.toEnd();
    this.show();
  }

  rename(id, title) {
    const conversation = id === this.current.id ? this.current : this.conversations.get(id);
    if (!conversation) return this.show(); // another tab has deleted it
    conversation.title = title;
    this.save(conversation);
    return this.show();
  }

  /** Writes a file that `/load` of `pipezoo chat` reads, too. */
  exported(id) {
    const { title, system, messages } = this.current.id === id ? this.current : this.conversations.get(id);
    const told = system ? [{ role: "system", content: system }] : [];
    const chat = { messages: [...told, ...messages.map(({ role, content }) => ({ role, content }))] };
    const address = URL.createObjectURL(new Blob([`${JSON.stringify(chat, null, 1)}\n`], { type: "application/json" }));
    const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "conversation";
    element("a", { href: address, download: `${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  remove(id) {
    const dialog = byId("delete-dialog");
    byId("delete-name").textContent = this.conversations.get(id)?.title ?? "";
    dialog.returnValue = "keep";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "delete") return;
      this.answerings.get(id)?.stop();
      this.failures.delete(id);
      this.removed = id;
      this.conversations.remove(id);
      if (id === this.current.id) this.begin();
    }, { once: true });
    dialog.showModal();
  }

  /** Takes what the user has chosen: a model, an adapter, settings. */
  choose(choice) {
    Object.assign(this.current, choice);
    this.conversations.keepChoices(this.current);
    if (this.current.messages.length) this.save(this.current);
    this.choice.show(this.current);
    byId("empty-note").textContent = this.current.adapter || this.choice.model.value;
    byId("in-force").textContent = differing(this.current);
  }

  save(conversation) {
    this.conversations.save(conversation);
    this.showUnstored();
  }

  send(text) {
    this.current.messages.push({ role: "user", content: text });
    this.answer();
  }

  edit(index, text) {
    this.answerings.get(this.current.id)?.stop();
    this.current.messages = [...this.current.messages.slice(0, index), { role: "user", content: text }];
    this.answer();
    this.composer.focus();
  }

  regenerate() {
    if (this.answerings.has(this.current.id) || !this.current.messages.length) return;
    const before = this.current.messages;
    const isAnswered = before.at(-1).role === "assistant";
    if (isAnswered) this.current.messages = before.slice(0, -1);
    this.answer(isAnswered ? before.at(-1) : null);
  }

  stop() {
    this.answerings.get(this.current.id)?.stop();
  }

  /** Answers the conversation in view; where nothing comes, `previous` stays its answer. */
  async answer(previous = null) {
    if (!this.served) this.load();
    const conversation = this.current;
    const { model, adapter } = this.choice.show(conversation);
    const answering = new Answering(conversation, adapter || model, apiKey.get(), () => this.piece(conversation, answering));
    this.failures.delete(conversation.id);
    this.answerings.set(conversation.id, answering);
    conversation.updated = Date.now();
    this.save(conversation);
    this.scroll.toEnd();
    this.show();
    this.say("Answering");
    try {
      await answering.run();
    } catch (error) {
      this.fail(conversation.id, error, () => this.again(conversation));
    } finally {
      this.end(answering, previous);
    }
  }

  again(conversation) {
    if (conversation === this.current) this.regenerate();
  }

  end(answering, previous) {
    const { conversation, message } = answering;
    const isLatest = this.answerings.get(conversation.id) === answering; // and not one to a question that was changed since
    if (isLatest) this.answerings.delete(conversation.id);
    const isEmpty = !conversation.messages.includes(message);
    if (isLatest && isEmpty && previous) conversation.messages.push(previous);
    if (conversation.id !== this.removed) this.save(conversation);
    if (conversation !== this.current) return this.showList();
    this.say(isEmpty && message.end === "stop" ? "The answer is empty" : `Answered: ${told(message)}`);
    return this.show();
  }

  /** Shows what has come, once for each picture that the screen shows. */
  piece(conversation, answering) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (conversation !== this.current || this.answerings.get(conversation.id) !== answering) return;
      if (this.messages.views.length < conversation.messages.length) this.show();
      else this.messages.update(answering.message, true);
      this.scroll.follow();
    });
  }

  fail(id, error, again) {
    if (!(error instanceof ServerError)) throw error;
    this.failures.set(id, { text: error.message, again });
    if (!error.isAboutKey) return;
    this.asksForKey = true;
    this.keyDialog.open();
  }

  say(text) {
    byId("status").textContent = text;
  }
}

new Page();
