/** Splitting text into words without losing a character. */

const IDS_OF_A_LETTER = 0.4; // small, or white space; English takes fewer, a rare word as many

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
 * Say a number of words.
 * @param {number} count
 */
export function inWords(count) {
  return count === 1 ? "1 word" : `${count} words`;
}

/**
 * Return about how many ids of a model a text takes, rather too many than too few: capitals, digits
 * and signs are often ids of their own, and what the model was not made for is read byte by byte.
 * @param {string} text
 */
export function roughIds(text) {
  const beyond = text.replace(/[a-z \t\n]+/gu, "");
  const bytes = new TextEncoder().encode(beyond).length;
  return IDS_OF_A_LETTER * (text.length - beyond.length) + bytes;
}

/**
 * Return the first words of a text, as it stands. Of a first word that is too long alone, as in a
 * script without white space, it is the first characters.
 * @param {string} text
 * @param {{words: number, ids: number}} most ids as `roughIds` counts them
 */
export function firstWords(text, { words, ids }) {
  const parts = units(text)
    .slice(0, words)
    .map(({ gap, word }) => gap + word);
  return fitting(parts, ids) || fitting([...text], ids);
}

/**
 * Join the first parts of a text that fit together.
 * @param {string[]} parts
 * @param {number} ids
 */
function fitting(parts, ids) {
  let end = 0;
  for (let size = 0; end < parts.length; end += 1) {
    size += roughIds(parts[end]);
    if (size > ids) break;
  }
  return parts.slice(0, end).join("");
}

/**
 * Return the part of a text that begins right at its first word.
 * @param {string} text
 */
export function fromFirstWord(text) {
  return text.replace(/^\s+/u, "");
}
