/** Words that the arrow keys go to: one of them at a time is in the tab order. */

/**
 * Let the arrow keys go from word to word inside an element, by reading order and by rows.
 * @param {HTMLElement} container
 * @param {() => HTMLElement[][]} rows its words, row by row
 * @param {(word: HTMLElement) => void} [choose] what a click, Enter or the space bar does
 */
export function rove(container, rows, choose) {
  container.addEventListener("keydown", (event) => {
    const word = wordAt(event.target);
    if (!word || event.ctrlKey || event.metaKey || event.altKey) return;
    if (choose && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      choose(word);
      return;
    }
    const next = neighbor(rows(), word, event.key);
    if (!next) return;
    event.preventDefault();
    next.tabIndex = -1;
    next.focus();
  });
  container.addEventListener("focusin", (event) => {
    const word = wordAt(event.target);
    if (word) stopAt(container, word, choose !== undefined);
  });
  container.addEventListener("click", (event) => {
    const word = wordAt(event.target);
    if (!word || !choose || getSelection()?.toString()) return;
    stopAt(container, word, true);
    word.focus();
    choose(word);
  });
}

/**
 * Make a word the one in the tab order. Only that one is called a button, so that the text can be
 * read without hearing it at every word.
 * @param {HTMLElement} container
 * @param {HTMLElement} word
 * @param {boolean} opens whether it opens a menu
 */
export function stopAt(container, word, opens) {
  for (const other of container.querySelectorAll("[tabindex]")) {
    if (other === word) continue;
    for (const name of ["tabindex", "role", "aria-haspopup"]) other.removeAttribute(name);
  }
  word.tabIndex = 0;
  if (!opens) return;
  word.setAttribute("role", "button");
  word.setAttribute("aria-haspopup", "dialog");
}

/**
 * @param {EventTarget | null} target
 * @returns {HTMLElement | null}
 */
function wordAt(target) {
  return target instanceof Element ? target.closest(".word") : null;
}

/**
 * @param {HTMLElement[][]} rows
 * @param {HTMLElement} word
 * @param {string} key
 */
function neighbor(rows, word, key) {
  const all = rows.flat();
  const place = all.indexOf(word);
  const row = rows.findIndex((words) => words.includes(word));
  const onward = getComputedStyle(word).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  switch (key) {
    case "ArrowLeft":
    case "ArrowRight":
      return all[place + (key === onward ? 1 : -1)];
    case "ArrowUp":
    case "ArrowDown":
      return nearest(rows[row + (key === "ArrowDown" ? 1 : -1)], word);
    case "Home":
      return all[0];
    case "End":
      return all[all.length - 1];
    default:
      return undefined;
  }
}

/**
 * @param {HTMLElement[] | undefined} row
 * @param {HTMLElement} word
 */
function nearest(row, word) {
  const middle = (/** @type {HTMLElement} */ one) => {
    const { left, width } = one.getBoundingClientRect();
    return left + width / 2;
  };
  const wanted = middle(word);
  return row?.reduce((best, one) =>
    Math.abs(middle(one) - wanted) < Math.abs(middle(best) - wanted) ? one : best,
  );
}
