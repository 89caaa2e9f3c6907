// What the page remembers, in the browser's storage: each conversation under a key of its own, and a few choices.

const PREFIX = "pipezoo.conversation.";
const CHOICES = "pipezoo.choices";
const MAX_TITLE = 60;

/** The conversations. Where the browser stores nothing, they last until the page is left. */
export class Conversations {
  constructor() {
    this.unstored = new Map();
  }

  /** Returns a new one, which is stored with its first message. It begins with the choices of the latest one. */
  create() {
    const { model = "", adapter = "", system = "", sampling = {} } = read(CHOICES) ?? {};
    const now = Date.now();
    return { id: `${now.toString(36)}${Math.random().toString(36).slice(2, 8)}`, title: "", updated: now, model, adapter, system, sampling, messages: [] };
  }

  /** Returns all, the latest first. */
  all() {
    const found = new Map(this.unstored);
    for (const key of storedKeys()) {
      const conversation = read(key);
      if (isConversation(conversation)) found.set(conversation.id, conversation);
    }
    return [...found.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.unstored.get(id) ?? read(PREFIX + id);
  }

  /** Stores one; where that fails, it is `isUnstored`. */
  save(conversation) {
    conversation.title ||= titleOf(conversation);
    const isStored = write(PREFIX + conversation.id, conversation);
    if (isStored) this.unstored.delete(conversation.id);
    else this.unstored.set(conversation.id, conversation);
  }

  /** Whether one will be lost when the page is left. */
  isUnstored(id) {
    return this.unstored.has(id);
  }

  remove(id) {
    this.unstored.delete(id);
    remove(PREFIX + id);
  }

  /** Keeps what a conversation has chosen, for new ones. */
  keepChoices({ model, adapter, system, sampling }) {
    write(CHOICES, { model, adapter, system, sampling });
  }

  /** Calls back when another tab has changed something. */
  onElsewhere(run) {
    addEventListener("storage", ({ key }) => {
      if (key === null || key.startsWith(PREFIX)) run(key?.slice(PREFIX.length) ?? null);
    });
  }
}

/** The API key: for as long as the tab is open, or for longer where the user wants that. */
export const apiKey = {
  get: () => from(sessionStorageOrNull(), "pipezoo.key") ?? from(localStorageOrNull(), "pipezoo.key") ?? "",
  isRemembered: () => from(localStorageOrNull(), "pipezoo.key") !== null,
  set(key, isRemembered) {
    for (const [storage, isHere] of [[sessionStorageOrNull(), !isRemembered], [localStorageOrNull(), isRemembered]]) {
      try {
        if (isHere && key) storage?.setItem("pipezoo.key", key);
        else storage?.removeItem("pipezoo.key");
      } catch {
        // then it is asked for again
      }
    }
  },
};

function titleOf({ messages }) {
  const first = messages.find(({ role }) => role === "user")?.content ?? "";
  const line = first.trim().split("\n")[0];
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE).trimEnd()}…` : line;
}

function isConversation(value) {
  const isMessage = (message) => typeof message?.role === "string" && typeof message.content === "string";
  return typeof value?.id === "string" && Array.isArray(value.messages) && value.messages.every(isMessage);
}

function localStorageOrNull() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function sessionStorageOrNull() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function from(storage, key) {
  return storage?.getItem(key) ?? null;
}

function storedKeys() {
  return Object.keys(localStorageOrNull() ?? {}).filter((key) => key.startsWith(PREFIX));
}

function read(key) {
  try {
    return JSON.parse(from(localStorageOrNull(), key));
  } catch {
    return null; // what somebody else has written there
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or switched off
  }
}

function remove(key) {
  localStorageOrNull()?.removeItem(key);
}
