/** Making and finding elements. Text is only ever set as text, never as HTML. */

/**
 * Find an element by its id; the page is broken if it is not there.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return /** @type {T} */ (element);
}

/**
 * Make an element with attributes and children; a string becomes a text node.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * Make a button that does something when it is pressed.
 * @param {string} text
 * @param {() => void} action
 * @param {Record<string, string>} [attributes]
 */
export function button(text, action, attributes = {}) {
  const element = make("button", { type: "button", ...attributes }, text);
  element.addEventListener("click", action);
  return element;
}

/**
 * Tell those who listen to the page rather than look at it.
 * @param {string} text
 */
export function announce(text) {
  byId("announcement").textContent = text;
}

/**
 * Show one line about what went wrong and what to do; an empty line takes it away.
 * @param {string} text
 */
export function showProblem(text) {
  byId("problem-line").textContent = text;
  byId("problem").hidden = !text;
}

/** The line about what went wrong that is shown; empty if there is none. */
export function shownProblem() {
  return byId("problem-line").textContent;
}

/** Return whether the reader asked for less movement. */
export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
