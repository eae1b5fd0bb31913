/** The form that asks for the API key. */

import { canBeKey } from "./api.js";
import { byId } from "./dom.js";

/** @type {Promise<string | null> | null} */
let asking = null;

/**
 * Ask for the key, once for all who wait for it; null if the user would rather not.
 * @param {boolean} refused whether the last one was not accepted
 */
export function askForKey(refused) {
  asking ??= answer(refused).finally(() => {
    asking = null;
  });
  return asking;
}

/**
 * @param {boolean} refused
 * @returns {Promise<string | null>}
 */
function answer(refused) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const form = /** @type {HTMLFormElement} */ (byId("key-form"));
  const field = /** @type {HTMLInputElement} */ (byId("key"));
  field.value = "";
  byId("key-refused").hidden = !refused;
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const listening = new AbortController();
    const { signal } = listening;
    const end = (/** @type {string | null} */ key) => {
      listening.abort();
      dialog.close();
      field.value = "";
      resolve(key);
    };
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        const key = field.value.trim();
        if (canBeKey(key)) return end(key);
        byId("key-refused").hidden = !key;
        field.select();
      },
      { signal },
    );
    byId("key-cancel").addEventListener("click", () => end(null), { signal });
    dialog.addEventListener("cancel", () => end(null), { signal });
  });
}
