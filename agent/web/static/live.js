// Renews the page when the daemon says that there is something new. Without scripts, pages reload by themselves.
(function () {
  "use strict";
  if (!window.EventSource || !document.querySelector("main[data-live]")) return;
  var waiting = false;

  // Nothing is taken from under a person's hands: what he types, chooses or has marked stays until he is done.
  function busy() {
    var at = document.activeElement;
    var inForm = at && at.closest("main form") && /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName);
    return Boolean(inForm) || String(window.getSelection()) !== "" || document.hidden;
  }

  function renew() {
    waiting = false;
    fetch(location.href, { headers: { accept: "text/html" } })
      .then(function (answer) { return answer.ok && !answer.redirected ? answer.text() : Promise.reject(answer.status); })
      .then(function (text) {
        var next = new DOMParser().parseFromString(text, "text/html").querySelector("main");
        var now = document.querySelector("main");
        if (!next || busy()) { waiting = Boolean(next); return; }
        var before = now.querySelectorAll("details");
        next.querySelectorAll("details").forEach(function (each, i) { if (before[i]) each.open = before[i].open; });
        now.replaceWith(next);
      })
      .catch(function () { waiting = true; });
  }

  var source = new EventSource("/events");
  source.onmessage = function () { if (busy()) waiting = true; else renew(); };
  setInterval(function () { if (waiting && !busy()) renew(); }, 2000);
})();
