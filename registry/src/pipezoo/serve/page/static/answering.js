// One answer while it comes. It goes on when another conversation is looked at, and what there is of it stays when it
// is stopped or breaks off.

import { answer } from "./server.js";

const MIN_SECONDS = 0.05; // what came at once was not measured

/** An answer to a conversation. */
export class Answering {
  /**
   * @param {object} conversation - gets the answer as its last message, with the first piece of it.
   * @param {string} model - answers; the server chooses where it is empty.
   * @param {string} key - the API key, or nothing.
   * @param {() => void} onChange - called with each piece.
   */
  constructor(conversation, model, key, onChange) {
    this.conversation = conversation;
    this.message = { role: "assistant", content: "", reasoning: "", model, end: "" };
    this.key = key;
    this.onChange = onChange;
    this.abort = new AbortController();
  }

  /** Returns when it has ended by itself or was stopped; throws a ServerError where it failed. */
  async run() {
    const begin = performance.now();
    const times = { first: 0, last: 0 };
    try {
      for await (const event of answer(this.request(), this.key, this.abort.signal)) {
        if (!this.abort.signal.aborted) this.take(event, times); // what had come already may be there still
      }
      this.message.end ||= "stop";
    } catch (error) {
      this.message.end = this.abort.signal.aborted ? "stopped" : "failed";
      if (!this.abort.signal.aborted) throw error;
    } finally {
      this.message.timing = timing(begin, times, this.message.usage);
    }
  }

  stop() {
    this.abort.abort();
  }

  request() {
    const { system, messages, sampling } = this.conversation;
    const told = system ? [{ role: "system", content: system }] : [];
    return { model: this.message.model || undefined, messages: [...told, ...messages.map(({ role, content }) => ({ role, content }))], ...sampling };
  }

  take(event, times) {
    const { usage, choices = [] } = event;
    const { message } = this;
    if (usage) message.usage = { prompt: usage.prompt_tokens, answer: usage.completion_tokens };
    for (const { index = 0, delta = {}, finish_reason: end } of choices) {
      if (index !== 0) continue;
      const content = delta.content ?? "";
      const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
      if (end) message.end = end;
      if (!content && !reasoning) continue;
      times.last = performance.now();
      times.first ||= times.last;
      message.content += content;
      message.reasoning += reasoning;
      if (!this.conversation.messages.includes(message)) this.conversation.messages.push(message);
      this.onChange();
    }
  }
}

/** Returns seconds to the first piece, and tokens a second after it, whose time is the prompt's. */
function timing(begin, { first, last }, usage) {
  const seconds = (last - first) / 1000;
  const rate = usage?.answer > 1 && seconds > MIN_SECONDS ? (usage.answer - 1) / seconds : null;
  return { first: first ? (first - begin) / 1000 : null, rate };
}
