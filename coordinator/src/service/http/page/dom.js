// Helpers for DOM elements. Text from the coordinator is always inserted as text, never as markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function configure(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Creates an HTML element with attributes, listeners (`on`), and children (elements and text). */
export const el = (name, properties = {}, ...children) => configure(document.createElement(name), properties, children);

/** Creates an SVG element: see `el`. */
export const svg = (name, properties = {}, ...children) => configure(document.createElementNS(SVG_NAMESPACE, name), properties, children);

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** Sets the text of an element, unless the element has this text already. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Sets an attribute, unless it has this value already. Removes it if `value` is null, undefined or
 * false.
 */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}
