// The form works without this: it only says what went wrong, and where to go afterwards.
const query = new URLSearchParams(location.search);
const next = query.get("next") ?? "";
if (/^\/(?![/\\])/.test(next)) document.getElementById("next").value = next;
document.getElementById("failed").hidden = !query.has("failed");
