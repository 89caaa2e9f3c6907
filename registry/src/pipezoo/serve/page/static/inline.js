// Markdown inside a line: emphasis, code, links. One pass, whose time grows with the text and no faster.

import { element } from "./dom.js";

const SPECIAL = /[\\`*_~[!<\n]|\bhttps?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const DESTINATION = /\(\s{0,8}<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s{1,8}"[^"]{0,500}")?\s{0,8}\)/y;
const BARE_URL = /https?:\/\/[^\s<>"`]+/y;
const ANGLE_URL = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/y;
const LINE_BREAK = /<br ?\/?>/y;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const TAGS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };
const MAX_DEPTH = 12; // of emphasis in emphasis; deeper marks are text

/** Returns a fragment with a text's inline Markdown. A line break is a line break. */
export function inline(text, hasLinks = true) {
  return new Scanner(text, hasLinks).run();
}

/** Returns an address that may be followed, or null: only whole ones, on the web or for mail. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

class Scanner {
  constructor(text, hasLinks) {
    this.text = text;
    this.at = 0;
    this.open = [{ mark: "", children: [] }]; // the emphasis that is open, outermost first
    this.ticks = runsOfTicks(text);
    this.brackets = hasLinks ? matchingBrackets(text) : new Map();
    this.hasLinks = hasLinks;
  }

  run() {
    while (this.at < this.text.length) {
      SPECIAL.lastIndex = this.at;
      const found = SPECIAL.exec(this.text)?.index ?? this.text.length;
      if (found > this.at) this.add(this.text.slice(this.at, found));
      this.at = found;
      if (found < this.text.length) this.special();
    }
    while (this.open.length > 1) this.unwrap();
    const whole = document.createDocumentFragment();
    whole.append(...this.open[0].children);
    return whole;
  }

  add(node) {
    this.open.at(-1).children.push(node);
  }

  special() {
    const mark = this.text[this.at];
    const isTaken =
      (mark === "\\" && this.escape()) ||
      (mark === "`" && this.code()) ||
      ((mark === "[" || mark === "!") && this.link()) ||
      (mark === "<" && (this.angle() || this.lineBreak())) ||
      (mark === "h" && this.bareURL()) ||
      (mark === "\n" && this.newLine()) ||
      ("*_~".includes(mark) && this.emphasis(mark));
    if (!isTaken) this.add(this.text[this.at++]);
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === undefined || !PUNCTUATION.test(next)) return false;
    this.add(next);
    this.at += 2;
    return true;
  }

  newLine() {
    this.add(element("br"));
    this.at += 1;
    return true;
  }

  lineBreak() {
    const found = this.match(LINE_BREAK);
    if (found) this.add(element("br"));
    return Boolean(found);
  }

  code() {
    const length = lengthOfRun(this.text, this.at);
    const ends = this.ticks.get(length) ?? []; // a run that an escape has shortened may be the only one
    while (ends.length && ends[0] <= this.at) ends.shift();
    if (!ends.length) {
      this.add("`".repeat(length));
      this.at += length;
      return true;
    }
    const content = this.text.slice(this.at + length, ends[0]).replaceAll("\n", " ");
    this.add(element("code", {}, hasRoom(content) ? content.slice(1, -1) : content));
    this.at = ends[0] + length;
    return true;
  }

  /** A picture is shown as a link to it, so that reading an answer asks no other server for anything. */
  link() {
    const begin = this.text[this.at] === "!" ? this.at + 1 : this.at;
    const end = this.brackets.get(begin);
    if (end === undefined) return false;
    DESTINATION.lastIndex = end + 1;
    const found = DESTINATION.exec(this.text);
    const address = found && safeAddress(found[1]);
    if (!address) return false;
    const label = this.text.slice(begin + 1, end);
    this.add(anchor(address, label ? inline(label, false) : address));
    this.at = DESTINATION.lastIndex;
    return true;
  }

  angle() {
    const found = this.hasLinks && this.match(ANGLE_URL);
    if (found) this.add(safeAddress(found[1]) ? anchor(safeAddress(found[1]), found[1]) : found[0]);
    return Boolean(found);
  }

  bareURL() {
    const begin = this.at;
    const found = this.match(BARE_URL);
    if (!found) return false;
    const shown = withoutTail(found[0]);
    const address = this.hasLinks && safeAddress(shown);
    this.add(address ? anchor(address, shown) : shown);
    this.at = begin + shown.length;
    return true;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  /** A run of marks closes what is open and fits into it, innermost first; what is left of it opens, or is text. */
  emphasis(character) {
    const length = lengthOfRun(this.text, this.at);
    const [before, after] = [this.text[this.at - 1] ?? " ", this.text[this.at + length] ?? " "];
    const isText = character === "~" ? length !== 2 : character === "_" && /\w/.test(before) && /\w/.test(after);
    let left = length;
    while (left && !isText && /\S/.test(before)) {
      const found = this.open.findLast(({ mark }) => mark[0] === character && mark.length <= left);
      if (!found) break;
      this.close(found.mark);
      left -= found.mark.length;
    }
    const opens = !isText && /\S/.test(after) && left <= 3 && this.open.length + 1 < MAX_DEPTH;
    if (opens && left >= 2) this.open.push({ mark: character + character, children: [] });
    if (opens && left % 2) this.open.push({ mark: character, children: [] });
    if (!opens && left) this.add(character.repeat(left));
    this.at += length;
    return true;
  }

  close(mark) {
    while (this.open.at(-1).mark !== mark) this.unwrap();
    const { children } = this.open.pop();
    this.add(element(TAGS[mark], {}, ...children));
  }

  /** What was opened and is not closed was text. */
  unwrap() {
    const { mark, children } = this.open.pop();
    const outer = this.open.at(-1).children;
    outer.push(mark);
    for (const child of children) outer.push(child);
  }
}

function anchor(address, content) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, content);
}

/** Returns an address without the punctuation of the sentence around it. */
function withoutTail(address) {
  let end = address.length;
  let surplus = (address.match(/\)/g)?.length ?? 0) - (address.match(/\(/g)?.length ?? 0);
  for (; end > 8; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && surplus > 0) surplus -= 1;
    else if (!".,;:!?*_~'".includes(last)) break;
  }
  return address.slice(0, end);
}

/** Whether there is a space on both sides, as code needs that begins or ends with a backtick. */
const hasRoom = (content) => content.startsWith(" ") && content.endsWith(" ") && content.trim() !== "";

function lengthOfRun(text, begin) {
  let end = begin;
  while (text[end] === text[begin]) end += 1;
  return end - begin;
}

/** Returns where runs of backticks begin, by their length. */
function runsOfTicks(text) {
  const found = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!found.has(run.length)) found.set(run.length, []);
    found.get(run.length).push(index);
  }
  return found;
}

/** Returns the closing bracket of each opening one. */
function matchingBrackets(text) {
  const found = new Map();
  const open = [];
  for (const { 0: mark, index } of text.matchAll(/\\[\s\S]|[[\]]/g)) {
    if (mark === "[") open.push(index);
    else if (mark === "]" && open.length) found.set(open.pop(), index);
  }
  return found;
}
