/** Where the page begins: the views, their addresses, and what they share. */

import { ApiError, onKeyWanted, onServerBack, request } from "./api.js";
import { Chat } from "./chat.js";
import { byId, showProblem, shownProblem } from "./dom.js";
import { keepFields } from "./draft.js";
import { askForKey } from "./key.js";
import { copyFlowing } from "./sheet.js";
import { StoryDesk } from "./story.js";
import { BothWays } from "./surprise.js";
import { prepareWordMenu } from "./word_menu.js";

const VIEWS = ["story", "backchat", "both-ways"];
const STOP = "main > section:not([hidden]) [aria-keyshortcuts=Escape]:not([hidden])";
const CLOSED_BY_ESCAPE = ":popover-open, dialog[open]";
const RETRY_MS = 3000; // to ask again for the models when the server cannot be reached

let isAsking = false;

/** Show the view that the address names. */
function showView() {
  const wanted = location.hash.replace(/^#\//, "");
  const shown = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const view of VIEWS) byId(view).hidden = view !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(shown).querySelector("h1");
  document.title = `${title?.textContent} · backgpt`;
  return title;
}

/**
 * Press the button Stop of the open view, if Escape has nothing else to do.
 * @param {KeyboardEvent} event
 */
function stopByKey({ key, isComposing }) {
  if (key !== "Escape" || isComposing || document.querySelector(CLOSED_BY_ESCAPE)) return;
  const stop = document.querySelector(STOP);
  if (stop instanceof HTMLElement) stop.click();
}

/**
 * Ask the server for its models and offer them in every view; again until it answers. Where a key
 * is wanted and not given, the next request asks for it, and then for the models.
 * @param {string} [shown] the problem that the last try has shown
 */
async function offerModels(shown = "") {
  if (isAsking) return;
  isAsking = true;
  try {
    const { data } = await request("v1/models");
    for (const view of views) view.offer(data);
    if (shown && shownProblem() === shown) showProblem("");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const { message, status } = error;
    const stands = !shown || shownProblem() === shown;
    if (stands && message !== shown) showProblem(message);
    if (status !== 401) setTimeout(offerModels, RETRY_MS, message);
  } finally {
    isAsking = false;
  }
}

keepFields(byId("main"));
onKeyWanted(askForKey);
onServerBack(offerModels);
prepareWordMenu();
const views = [new StoryDesk(), new Chat(), new BothWays()];
showView();
addEventListener("hashchange", () => {
  showProblem("");
  showView()?.focus();
});
document.addEventListener("keydown", stopByKey);
document.addEventListener("copy", copyFlowing);
byId("problem-close").addEventListener("click", () => showProblem(""));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  const places = document.querySelectorAll("main textarea, main .word[tabindex]");
  const first = [...places].find((place) => place.checkVisibility());
  if (first instanceof HTMLElement) first.focus();
});
offerModels();
