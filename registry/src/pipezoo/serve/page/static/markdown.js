// Markdown in blocks: paragraphs, headings, lists, quotes, code, tables. Built as elements; there is no HTML in between.

import { copy } from "./clipboard.js";
import { element, icon } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: +(?=\S)|[ \t]*$)/;
const DELIMITER_CELL = /^:?-+:?$/;
const MAX_DEPTH = 8; // of lists and quotes in each other; deeper ones are paragraphs

/** Shows a text that grows: blocks that are as they were keep their elements. */
export class MarkdownView {
  /** @param {HTMLElement} target - gets the blocks, and has nothing else. */
  constructor(target) {
    this.target = target;
    this.sources = [];
  }

  show(text) {
    const blocks = split(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
    const sources = blocks.map((block) => `${block.kind} ${block.lines.join("\n")}`);
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.target.childNodes.length > same) this.target.lastChild.remove();
    for (const block of blocks.slice(same)) this.target.append(build(block, 0));
    this.sources = sources;
  }
}

/** Returns the blocks of some lines. */
function split(lines, depth) {
  const blocks = [];
  let at = 0;
  const take = (kind, end) => {
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) at += 1;
    else if (FENCE.test(line)) take("code", endOfCode(lines, at));
    else if (HEADING.test(line)) take("heading", at + 1);
    else if (RULE.test(line)) take("rule", at + 1);
    else if (depth < MAX_DEPTH && QUOTE.test(line)) take("quote", endWhere(lines, at, (next) => !QUOTE.test(next)));
    else if (depth < MAX_DEPTH && MARKER.test(line)) take("list", endOfList(lines, at));
    else if (isTable(lines, at)) take("table", endWhere(lines, at, (next) => !next.includes("|")));
    else take("paragraph", endWhere(lines, at, (next, i) => !next.trim() || interrupts(next) || isTable(lines, i)));
  }
  return blocks;
}

function endWhere(lines, begin, isEnd) {
  let end = begin + 1;
  while (end < lines.length && !isEnd(lines[end], end)) end += 1;
  return end;
}

function interrupts(line) {
  const marker = MARKER.exec(line);
  const begins = marker && marker[0].length < line.length && (/[-*+]/.test(marker[2]) || parseInt(marker[2], 10) === 1);
  return begins || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function endOfCode(lines, begin) {
  const fence = FENCE.exec(lines[begin].trimStart())[1];
  const isEnd = (line) => line.trim().length >= fence.length && line.trim() === fence[0].repeat(line.trim().length);
  return Math.min(lines.length, endWhere(lines, begin, isEnd) + 1);
}

const kindOfMarker = (marker) => (/\d/.test(marker) ? marker.at(-1) : marker);
const indentOf = (line) => line.length - line.trimStart().length;

function endOfList(lines, begin) {
  const first = MARKER.exec(lines[begin]);
  const isOther = (line) => {
    const marker = MARKER.exec(line);
    return RULE.test(line) || (marker ? kindOfMarker(marker[2]) !== kindOfMarker(first[2]) : interrupts(line));
  };
  let end = begin + 1;
  for (let at = end; at < lines.length; at += 1) {
    const line = lines[at];
    if (!line.trim()) continue;
    const isInside = indentOf(line) > first[1].length + 1;
    const isAfterBlank = at > end;
    if (!isInside && (isOther(line) || (isAfterBlank && !MARKER.test(line)))) break;
    if (isInside && FENCE.test(line.trimStart())) at = endOfCode(lines, at) - 1;
    end = at + 1;
  }
  return end;
}

const cells = (line) =>
  line.trim().replace(/^\|/, "").replace(/\|$/, "").replaceAll("\\|", "\u0000").split("|").map((cell) => cell.trim().replaceAll("\u0000", "|"));

function isTable(lines, at) {
  const [head, delimiter] = [lines[at], lines[at + 1] ?? ""];
  if (!head.includes("|") || !delimiter.includes("-")) return false;
  const marks = cells(delimiter);
  return marks.every((cell) => DELIMITER_CELL.test(cell)) && marks.length === cells(head).length;
}

const BUILDERS = {
  paragraph: (lines) => element("p", {}, inline(lines.map((line) => line.trim()).join("\n"))),
  rule: () => element("hr"),
  heading: ([line]) => {
    const level = HEADING.exec(line)[1].length;
    return element(`h${Math.min(6, level + 2)}`, {}, inline(withoutHashes(line.trim().slice(level)))); // the page has h1 and h2
  },
  quote: (lines, depth) =>
    element("blockquote", {}, ...buildAll(lines.map((line) => line.replace(QUOTE, "")), depth + 1)),
  code: (lines) => buildCode(lines),
  list: (lines, depth) => buildList(lines, depth),
  table: (lines) => buildTable(lines),
};

const build = (block, depth) => BUILDERS[block.kind](block.lines, depth);
const buildAll = (lines, depth) => split(lines, depth).map((block) => build(block, depth));

function withoutHashes(text) {
  let end = text.length;
  while (end && text[end - 1] === "#") end -= 1;
  return (end === 0 || text[end - 1] === " " ? text.slice(0, end) : text).trim();
}

function buildCode(lines) {
  const [, fence, about] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const indent = indentOf(lines[0]);
  const content = lines.slice(1, isClosed ? -1 : undefined).map((line) => line.slice(Math.min(indent, indentOf(line))));
  const text = content.join("\n");
  const label = element("span", {}, "Copy");
  const button = element("button", { type: "button", "aria-label": "Copy the code" }, icon("copy"), label);
  button.addEventListener("click", async () => {
    label.textContent = (await copy(text)) ? "Copied" : "Not copied";
    setTimeout(() => (label.textContent = "Copy"), 2000);
  });
  const head = element("div", { class: "head" }, element("span", {}, about.trim().split(/\s/)[0] || "text"), button);
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, element("code", {}, text)));
}

function buildList(lines, depth) {
  const first = MARKER.exec(lines[0]);
  const items = [];
  let content = 0;
  for (const line of lines) {
    const marker = MARKER.exec(line);
    if (marker && (!items.length || marker[1].length < content)) {
      content = marker[0].trimEnd().length + 1;
      items.push([line.slice(marker[0].length)]);
    } else {
      items.at(-1).push(line.slice(Math.min(content, indentOf(line))));
    }
  }
  const isLoose = lines.some((line, i) => !line.trim() && i + 1 < lines.length);
  const start = parseInt(first[2], 10);
  const attributes = Number.isNaN(start) || start === 1 ? {} : { start };
  return element(Number.isNaN(start) ? "ul" : "ol", attributes, ...items.map((item) => buildItem(item, isLoose, depth)));
}

function buildItem(lines, isLoose, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const rest = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const box = task ? element("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": "Done" }) : null;
  const blocks = split(rest, depth + 1).map((block) => {
    const node = build(block, depth + 1);
    if (isLoose || block.kind !== "paragraph") return node;
    const children = document.createDocumentFragment();
    children.append(...node.childNodes);
    return children;
  });
  return element("li", { class: task ? "task" : null }, box, box && " ", ...blocks);
}

function buildTable(lines) {
  const sides = cells(lines[1]).map((cell) => (!cell.endsWith(":") ? null : cell.startsWith(":") ? "center" : "right"));
  const row = (tag, line) => {
    const found = cells(line);
    return element("tr", {}, ...sides.map((side, i) => element(tag, { class: side }, inline(found[i] ?? ""))));
  };
  const body = lines.slice(2).map((line) => row("td", line));
  const table = element("table", {}, element("thead", {}, row("th", lines[0])), element("tbody", {}, ...body));
  return element("div", { class: "table", tabindex: "0" }, table);
}
