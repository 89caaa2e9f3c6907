// Makes elements. Text goes in as text nodes alone: nothing that a model or a server says is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Returns an element. Attributes whose names begin with `on` are listeners; `true` and `false` set and leave out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Returns one of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Returns a button that has only a symbol; its label is read aloud, and shown under the pointer. */
export function iconButton(name, label, run) {
  return element("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick: run }, icon(name));
}

/** Gives an element these children, in this order. Those that stay are not touched, so that focus and text in them stay, too. */
export function arrange(parent, nodes) {
  const wanted = new Set(nodes);
  for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
}

/** Whether a press of Enter is meant, and not the end of an input method's text: Safari tells that by the code alone. */
export const isEnter = (event) => event.key === "Enter" && !event.isComposing && event.keyCode !== 229;

/** Returns the element with an id. */
export const byId = (id) => document.getElementById(id);
