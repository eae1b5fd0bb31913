/** Fields that hold a number, or nothing: they raise RangeError with what to do. */

/** Draw a seed, 32 bits. */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * Read a field that holds a whole number, or nothing.
 * @param {HTMLInputElement} field
 * @param {string} name
 * @param {number} least
 * @param {number} [most]
 * @returns {number | undefined}
 */
export function wholeNumber(field, name, least, most = Number.MAX_SAFE_INTEGER) {
  const isWhole = /^\d*$/.test(field.value.trim());
  return numberIn(field, `${name}: give a whole number`, isWhole, [least, most]);
}

/**
 * Read a field that holds any number, or nothing.
 * @param {HTMLInputElement} field
 * @param {string} name
 * @param {number} least
 * @param {number} most
 * @returns {number | undefined}
 */
export function decimal(field, name, least, most) {
  return numberIn(field, `${name}: give a number`, true, [least, most]);
}

/**
 * @param {HTMLInputElement} field
 * @param {string} wanted
 * @param {boolean} isRight whether it is of the right kind, if it is a number
 * @param {[number, number]} range
 */
function numberIn(field, wanted, isRight, [least, most]) {
  const text = field.value.trim();
  if (!text && !field.validity.badInput) return undefined;
  const value = Number(text);
  if (text && isRight && value >= least && value <= most) return value;
  field.closest("details")?.setAttribute("open", "");
  field.focus();
  const isOpen = most === Number.MAX_SAFE_INTEGER && !(value > most);
  throw new RangeError(`${wanted} from ${least} ${isOpen ? "up" : `to ${most}`}, or nothing.`);
}
