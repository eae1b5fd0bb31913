/** Taking a story along: a file, the clipboard, or on paper. */

import { announce, byId, make, showProblem } from "./dom.js";
import { recordOf, seedOf, textOf } from "./record.js";

/**
 * Make the buttons ready that take a story along, its first draft.
 * @param {() => import("./record.js").Story} story
 */
export function prepareOutputs(story) {
  const on = (/** @type {string} */ id, /** @type {() => void} */ action) =>
    byId(id).addEventListener("click", action);
  const text = () => textOf(story(), story().drafts[0]);
  const record = () => `${JSON.stringify(recordOf(story()), null, 2)}\n`;
  on("copy-seed", () => copy(`${seedOf(story().drafts[0])}`, "seed"));
  on("copy-text", () => copy(text(), "text"));
  on("save-text", () => saveFile("story.txt", text(), "text/plain;charset=utf-8"));
  on("save-json", () => saveFile("story.json", record(), "application/json"));
  on("print", () => print());
}

/**
 * Save text as a file.
 * @param {string} name
 * @param {string} text
 * @param {string} type
 */
function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = /** @type {HTMLAnchorElement} */ (make("a", { href: address, download: name }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/**
 * Copy text to the clipboard.
 * @param {string} text
 * @param {string} what is said when it is done
 */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    announce(`${what} copied`);
    byId("status").textContent = `${what} copied`;
  } catch {
    showProblem("The browser does not let this page copy: select the text and copy it by hand.");
  }
}
