/** What the tab keeps: in the browser's storage, or where that is denied or full in this page. */

/** @type {Map<string, string>} */
const here = new Map();

/**
 * @param {string} name
 * @param {string} value
 */
export function store(name, value) {
  here.set(name, value);
  try {
    sessionStorage.setItem(name, value);
  } catch {
    // It is lost when the page goes, and nothing else is.
  }
}

/**
 * @param {string} name
 * @returns {string | null}
 */
export function stored(name) {
  try {
    return here.get(name) ?? sessionStorage.getItem(name);
  } catch {
    return here.get(name) ?? null;
  }
}
