/** Taking a text along: a file, or the clipboard. */

import { announce, make, showProblem } from "./dom.js";

/**
 * Save text as a file.
 * @param {string} name
 * @param {string} text
 * @param {string} type
 */
export function saveFile(name, text, type) {
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
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    announce(`${what} copied`);
  } catch {
    showProblem("The browser does not let this page copy: select the text and copy it by hand.");
  }
}
