"""The theme's own words that operators meet: it brings no Vietnamese, so they stand in our catalogue. Only read by
``makemessages``."""

from django.utils.translation import gettext_noop as _

WORDS = (
    _("Type to search"),
    _("Filters"),
    _("Apply Filters"),
    _("Clear all filters"),
    _("Select all rows"),
    _("Run the selected action"),
    _("Log out"),
    _("Change password"),
    _("More actions"),
    _("Light"),
    _("Dark"),
    _("System"),
    _("Toggle sorting"),
    _("Remove from sorting"),
    _("No results matching your query"),
    _("No recent searches"),
    _("Recent searches"),
    _("Loading more results..."),
    _("Select value"),
    _("Yes, I’m sure"),
    _("No, take me back"),
    _("Toggle password visibility"),
    _("After you've created a user, you’ll be able to edit more user options."),
)
