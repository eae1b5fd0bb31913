/** Splitting text into words without losing a character. */

/**
 * A word and the white space in front of it. The last one of a text may have no word.
 * @typedef {{gap: string, word: string}} Unit
 */

/**
 * Split a text into units; joined, they are the text.
 * @param {string} text
 * @returns {Unit[]}
 */
export function units(text) {
  return Array.from(text.matchAll(/(\s*)(\S+)|(\s+)$/gu), ([, gap, word, rest]) => ({
    gap: gap ?? rest,
    word: word ?? "",
  }));
}

/**
 * Count the words of a text: units with a letter or a digit.
 * @param {string} text
 */
export function countWords(text) {
  return units(text).filter(({ word }) => /[\p{L}\p{N}]/u.test(word)).length;
}

/**
 * Say how many words a text has.
 * @param {string} text
 */
export function wordCount(text) {
  const count = countWords(text);
  return count === 1 ? "1 word" : `${count} words`;
}

/**
 * Return the first `most` words of a text, as it stands.
 * @param {string} text
 * @param {number} most
 */
export function firstWords(text, most) {
  return units(text)
    .slice(0, most)
    .map(({ gap, word }) => gap + word)
    .join("");
}

/**
 * Return the part of a text that begins right at its first word.
 * @param {string} text
 */
export function fromFirstWord(text) {
  return text.replace(/^\s+/u, "");
}
