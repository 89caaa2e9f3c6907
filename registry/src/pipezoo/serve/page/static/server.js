// What the page asks the server: which models there are, and answers, piece by piece. Addresses are relative to the
// page's, so that it works behind a proxy that serves it from a folder.

/** Something went wrong that the user has to know of. The message is for people. */
export class ServerError extends Error {
  /** @param {{status?: number}} about - the HTTP status, where there is one. */
  constructor(message, { status = 0 } = {}) {
    super(message);
    this.status = status;
  }

  get isAboutKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** Returns the models: `{id, parent, …}` each; those with a parent are adapters of it. */
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  const { data } = await response.json().catch(() => ({}));
  if (!Array.isArray(data)) throw new ServerError("What answered at this address is no server of language models.");
  return data;
}

/**
 * Yields the events of an answer as the server sends them, until it says that it is done.
 *
 * @param {object} body - the request of `/v1/chat/completions`, without `stream`.
 * @param {string} key - the API key, or nothing.
 * @param {AbortSignal} signal - ends it.
 */
export async function* answer(body, key, signal) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const event = parsed(data);
    if (event.error) throw new ServerError(sentence(event.error.message), { status: Number(event.error.code) || 0 });
    yield event;
  }
  throw new ServerError("The answer broke off: the server has closed the connection.");
}

const headers = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { error, detail } = await response.json().catch(() => ({}));
  const said = error?.message ?? (typeof detail === "string" ? detail : null);
  return new ServerError(said ? sentence(said) : `The server has answered with status ${response.status}.`, response);
}

function sentence(text) {
  const said = String(text ?? "The server has failed, and does not say why").trim();
  const begun = said.charAt(0).toUpperCase() + said.slice(1);
  return /[.!?)…]$/.test(begun) ? begun : `${begun}.`;
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("The server has sent something that cannot be read.");
  }
}

/** Yields the data of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
async function* events(stream, signal) {
  let data = [];
  for await (const line of lines(stream, signal)) {
    if (line === "") {
      if (data.length) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

async function* lines(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const found = (rest + value).split("\n");
      rest = found.pop();
      for (const line of found) yield line.endsWith("\r") ? line.slice(0, -1) : line;
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ServerError("The answer broke off: the connection to the server is gone.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
