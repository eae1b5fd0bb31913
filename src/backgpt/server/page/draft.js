/** What was typed, chosen and written survives a reload: it is kept until the tab closes. */

import { store, stored } from "./storage.js";

const NAME = "backgpt.fields";

/**
 * Bring back what was in the fields, and keep it when the page goes.
 * @param {HTMLElement} root
 */
export function keepFields(root) {
  const kept = keep(NAME, () => {
    const open = fields(root).filter((field) => field.type !== "radio" || field.checked);
    return Object.fromEntries(open.map((field) => [nameOf(field), valueOf(field)]));
  });
  for (const field of fields(root)) {
    const value = kept?.[nameOf(field)];
    if (typeof value !== "string") continue;
    if (isUnoffered(field)) field.dataset.wanted = value;
    else if (field.type === "radio") field.checked = field.value === value;
    else field.value = value;
    if (field.type === "range") field.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/**
 * Keep something under a name whenever the page may go, and return what was kept before.
 * @param {string} name
 * @param {() => object} current
 * @returns {any} null the first time
 */
export function keep(name, current) {
  const save = () => store(name, JSON.stringify(current()));
  addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) save(); // a phone may end a hidden page without another event
  });
  return JSON.parse(stored(name) ?? "null");
}

/**
 * @param {HTMLElement} root
 * @returns {HTMLInputElement[]}
 */
function fields(root) {
  return /** @type {HTMLInputElement[]} */ ([...root.querySelectorAll("input, textarea, select")]);
}

/** @param {HTMLInputElement} field */
function nameOf(field) {
  return `${field.form?.id ?? ""} ${field.name || field.id}`;
}

/** @param {HTMLInputElement} field */
function valueOf(field) {
  return isUnoffered(field) ? field.dataset.wanted : field.value;
}

/**
 * Return whether a field still waits for its choices, as one for the model does.
 * @param {HTMLElement} field
 */
function isUnoffered(field) {
  return field instanceof HTMLSelectElement && !field.options.length;
}
