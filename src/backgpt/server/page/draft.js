/** What was typed survives a reload: the fields are kept until the tab closes. */

const NAME = "backgpt.fields";

/**
 * Bring back what was in the fields, and keep it when the page goes.
 * @param {HTMLElement} root
 */
export function keepFields(root) {
  const kept = JSON.parse(sessionStorage.getItem(NAME) ?? "{}");
  for (const field of fields(root)) {
    const value = kept[nameOf(field)];
    if (typeof value !== "string") continue;
    if (field.type === "radio") field.checked = field.value === value;
    else field.value = value;
    if (field.type === "range") field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  addEventListener("pagehide", () => {
    const open = fields(root).filter((field) => field.type !== "radio" || field.checked);
    const values = Object.fromEntries(open.map((field) => [nameOf(field), field.value]));
    sessionStorage.setItem(NAME, JSON.stringify(values));
  });
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
