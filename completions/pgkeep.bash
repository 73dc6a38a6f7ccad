# Completion of pgkeep for bash, which asks pgkeep itself what may come next.
#
# bash ends words at = and :, which are parts of pgkeep's. So they are put together again,
# and what bash takes for words of their own is cut off from the front of the answers.

_pgkeep() {
    local word words=() front answers answer found widest=0
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if ((${#words[@]})) && [[ $word == [=:]* || ${words[-1]} == *[=:] ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    front=${words[-1]}
    [[ $word == [=:] ]] || front=${front%"$word"}
    words[-1]=$front$2

    mapfile -t answers < <(
        PGKEEP_COMPLETE=bash "${1/#\~\//$HOME/}" -- "${words[@]}" 2>/dev/null
    )
    COMPREPLY=()
    for answer in "${answers[@]}"; do
        case $answer in
            $'\t'files) mapfile -t found < <(compgen -f -- "$2") ;;
            $'\t'folders) mapfile -t found < <(compgen -d -- "$2") ;;
            *)
                answer=${answer#"$front"}
                found=("${answer%%$'\t'*}")
                ((${#found} > widest)) && widest=${#found}
                ;;
        esac
        [[ $answer == $'\t'* ]] && compopt -o filenames
        COMPREPLY+=("${found[@]}")
    done
    if [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == *[=/] ]]; then
        compopt -o nospace
    fi
    # Only a list shows what the words mean; a word to insert must stand alone.
    if [[ $COMP_TYPE == 63 && ${#COMPREPLY[@]} -gt 1 && ${#COMPREPLY[@]} == "${#answers[@]}" ]]; then
        for found in "${!COMPREPLY[@]}"; do
            answer=${answers[found]#*$'\t'}
            [[ -z $answer ]] || printf -v "COMPREPLY[found]" '%-*s  (%s)' "$widest" "${COMPREPLY[found]}" "$answer"
        done
    fi
}

complete -o nosort -F _pgkeep pgkeep 2>/dev/null || complete -F _pgkeep pgkeep
